"""Writes the README's numbers, tables and picture from `results/`: `python benchmarks/readme_table.py`.

A test compares the two, so that the README always shows the current results.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from featcache.benchmark.result import Result
from featcache.benchmark.showing import markdown_table, notes, sentence
from featcache.notebook.recipes import Recipe, recipe, recipe_names

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "main_job.json"
COMPARISON = ROOT / "benchmarks" / "results" / "end_to_end_cifar10-vgg16.json"
REPRODUCED = ROOT / "benchmarks" / "results" / "reproduce_mlp.json"
_TITLES = {"vgg16": "VGG16 at 224", "inception_v3": "Inception v3 at 299", "pixels": "raw pixels, 32x32"}


def table(result: dict[str, Any]) -> str:
    """The table of the main job as Markdown, one row per experiment."""
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
    """The README's first picture and first table: the four ways, and the notes."""
    lines = [
        f'<img alt="The time of the four ways, as in the table" src="benchmarks/results/{COMPARISON.stem}.svg">',
        "",
        markdown_table(result),
        "",
        " ".join(notes(result)),
    ]
    return "\n".join(lines) + "\n"


def headline(result: Result) -> str:
    """The speed-up of a single head, extraction included, over end to end at the same speed, as one paragraph."""
    return f"{sentence(result)} [Measured](#measured) has the details, and the slower way of a notebook.\n"


def recipes(result: dict[str, Any]) -> str:
    """A Markdown table with one row per recipe: the notebook's result and featcache's."""
    rows = {row["recipe"]: row for row in result["rows"]}
    lines = [
        "| recipe | backbone, input | head | notebook: accuracy, epochs | featcache: accuracy, epochs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in recipe_names():
        one = recipe(name)
        notebook, row = one.notebook, rows.get(name)
        measured = "-" if row is None else f"{100 * row['last']['accuracy']:.1f} %, {row['epochs']:.0f}"
        lines.append(
            f"| `{name}` | {_input(one)} | {_head(one)} | {100 * notebook.accuracy:.1f} %, {notebook.epochs or '-'} "
            f"| {measured} |"
        )
    return "\n".join(lines) + "\n"


def _input(one: Recipe) -> str:
    size = one.input.image_size or {"vgg16": 224, "inception_v3": 299}[one.backbone]
    return f"{one.backbone}, {size}x{size}"


def _head(one: Recipe) -> str:
    head = one.head
    extras = [
        *([head.activation] if head.activation != "relu" else []),
        *([f"L1 {head.l1:g}"] if head.l1 else []),
        *([f"weight decay {head.weight_decay:g}"] if head.weight_decay else []),
        *([f"dropout {head.dropout:g}"] if head.dropout else []),
    ]
    return ", ".join([f"`{head.head}`", *extras])


def _between_marks(text: str, match: re.Match[str]) -> str:
    return f"{match[1]}\n{text}\n{match[2]}"


def render(readme: str, numbers: dict[str, str]) -> str:
    """The README with each text written between its marks, `<!-- NAME: source -->` and `<!-- end of NAME -->`."""
    for name, text in numbers.items():
        pattern = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        readme, count = pattern.subn(functools.partial(_between_marks, text), readme)
        assert count == 1, f"expected one pair of marks for {name}, got {count}"
    return readme


def read_numbers() -> dict[str, str]:
    """The texts between the marks of the README, by name, from the stored results."""
    compared = Result.from_json(json.loads(COMPARISON.read_text()))
    return {
        "headline": headline(compared),
        "comparison": comparison(compared),
        "results": table(json.loads(RESULT.read_text())),
        "recipes": recipes(json.loads(REPRODUCED.read_text())),
    }


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text(), read_numbers()))
