"""The README's tables and its picture, from `results/`: `python benchmarks/readme_table.py` puts them there.

A test compares the two, so that no number in the README is older than its result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featcache.benchmark import Result
from featcache.benchmark.arithmetic import summarised
from featcache.benchmark.records import NOTEBOOK
from featcache.benchmark.tables import times_table
from featcache.benchmark.wording import findings, how_it_was_scaled, times, what_was_measured

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "main_job.json"
BEGIN, END = "<!-- results: benchmarks/results/main_job.json -->\n", "<!-- end of results -->"
COMPARISON = ROOT / "benchmarks" / "results" / "end_to_end_cifar10-vgg16.json"
COMPARED, END_COMPARED = f"<!-- comparison: benchmarks/results/{COMPARISON.name} -->\n", "<!-- end of comparison -->"
_TITLES = {"vgg16": "VGG16 at 224", "inception_v3": "Inception v3 at 299", "pixels": "raw pixels, 32x32"}


def table(result: dict[str, Any]) -> str:
    """Markdown: a row an experiment."""
    lines = [
        "| features | images | extracted once | the same again | head | trained in | test accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in _TITLES.items():
        extract, head, again = (result[name][key] for key in ("extract", "train_head", "extract_again"))
        lines.append(
            f"| {title} | {sum(extract['rows'].values()):,} | {extract['wall_seconds']:.0f} s | "
            f"{again['wall_seconds']:.1f} s | {head['head']}, {head['parameters']['trainable']:,} parameters | "
            f"{head['seconds']:.1f} s, {head['epochs']} epochs | {100 * head['test']['accuracy']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def comparison(result: Result) -> str:
    """The README's first picture and first table: the four ways, and what follows."""
    picture = f"benchmarks/results/{COMPARISON.stem}-ways"
    gains = summarised(result).comparisons[NOTEBOOK]
    lines = [
        "<picture>",
        f'  <source media="(prefers-color-scheme: dark)" srcset="{picture}-dark.svg">',
        f'  <img alt="{result.scenario.backbone}: a cached epoch is {times(gains.warm_epoch)} times faster than '
        f'end to end" src="{picture}-light.svg">',
        "</picture>",
        "",
        what_was_measured(result),
        "",
        times_table(result),
        "",
        " ".join([*findings(result), how_it_was_scaled(result) or ""]).strip(),
    ]
    return "\n".join(lines) + "\n"


def rendered(readme: str, result: dict[str, Any], compared: Result | None = None) -> str:
    """The README with the tables between their marks; the comparison goes before the first one where it is new."""
    before, rest = readme.split(BEGIN)
    page = f"{before}{BEGIN}\n{table(result)}\n{END}{rest.split(END, 1)[1]}"
    if compared is None:
        return page
    if COMPARED not in page:
        page = page.replace(BEGIN, f"{COMPARED}{END_COMPARED}\n\n{BEGIN}")
    before, rest = page.split(COMPARED)
    return f"{before}{COMPARED}\n{comparison(compared)}\n{END_COMPARED}{rest.split(END_COMPARED, 1)[1]}"


def measured() -> tuple[dict[str, Any], Result | None]:
    """The results that the README quotes; None for a comparison that was not measured yet."""
    compared = Result.from_json(json.loads(COMPARISON.read_text())) if COMPARISON.exists() else None
    return json.loads(RESULT.read_text()), compared


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rendered(path.read_text(), *measured()))
