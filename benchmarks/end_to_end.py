"""Measures end to end against cached: `python benchmarks/end_to_end.py ../shared --scenario cifar10-vgg16`.

Runs scenarios of `featcache benchmark` on the real images and weights in `../shared`. Each writes
`results/end_to_end_<scenario>` as JSON, Markdown and charts (SVG, light and dark).
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from machine import RESULTS, command

from featcache.benchmark import Scenario, scenario
from featcache.benchmark.kinds import files, measure, screen
from featcache.extraction.reporting import Reporter

_WEIGHTS = {"vgg16": "vgg16_imagenet_features.safetensors", "inception_v3": "inception_v3_features.safetensors"}
_KEPT = (".json", ".md", ".svg")


class _Printed:
    """A Reporter that prints messages at once, so that a log can be watched."""

    def info(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """Do nothing: a log needs no progress."""


def on_shared(one: Scenario, shared: Path) -> Scenario:
    """The scenario with the images and weights in `shared`; unchanged if it needs no download."""
    if one.backbone not in _WEIGHTS:
        return one
    images, weights = shared / "data" / "cifar10-images.zip", shared / "weights" / _WEIGHTS[one.backbone]
    # Relative paths, because a result is read on other machines.
    return replace(one, dataset=os.path.relpath(images), weights=os.path.relpath(weights))


def main(
    shared: Path,
    name: list[str] = typer.Option(["cifar10-vgg16"], "--scenario"),  # noqa: B008 - typer needs it as a default
    images: int | None = None,
    epochs: int | None = None,
    heads: int | None = None,
    sample: int | None = None,
    sample_epochs: int | None = None,
    data_dir: Path | None = None,
) -> None:
    """Measure scenarios, with the given changes, and write their results."""
    changes: dict[str, Any] = {
        "images": images, "epochs": epochs, "heads": heads, "sample": sample, "sample_epochs": sample_epochs
    }  # fmt: skip
    given = {option: value for option, value in changes.items() if value is not None}
    reporter: Reporter = _Printed()
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for each in name:
            result = measure(
                replace(on_shared(scenario(each), shared), **given),
                data_dir=data_dir or Path(scratch),
                command=command(),
                today=datetime.now(UTC).date(),
                reporter=reporter,
            )
            write(f"end_to_end_{each}", files(result))
            shown = screen(result)
            print("\n".join([*(" | ".join(row) for row in (shown.header, *shown.rows)), *shown.after]), flush=True)


def write(name: str, made: dict[str, bytes]) -> None:
    """Write the result, its page and its charts into the folder of results."""
    for file, content in made.items():
        path = Path(file)
        if path.suffix in _KEPT and not file.endswith(".vl.json"):
            kept = f"{name}{path.suffix}" if path.stem == "benchmark" else f"{name}-{file}"
            (RESULTS / kept).write_bytes(content)


if __name__ == "__main__":
    typer.run(main)
