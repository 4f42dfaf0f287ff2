"""The README's table, rendered from `results/main_job.json`: `python benchmarks/readme_table.py` puts it there.

A test compares the two, so that no number in the README is older than its result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "main_job.json"
BEGIN, END = "<!-- results: benchmarks/results/main_job.json -->\n", "<!-- end of results -->"
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


def rendered(readme: str, result: dict[str, Any]) -> str:
    """The README with the table between its two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table(result)}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(rendered(path.read_text(), json.loads(RESULT.read_text())))
