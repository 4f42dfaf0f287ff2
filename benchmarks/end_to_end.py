"""Measures end to end against a cache: `python benchmarks/end_to_end.py ../shared --scenario cifar10-vgg16`.

Runs scenarios of `featcache benchmark` on the real images and weights in `../shared`. Each writes
`results/end_to_end_<scenario>` as JSON, Markdown and SVG.
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

from featcache.benchmark.options import BenchmarkOptions, scenario
from featcache.benchmark.run import run_benchmark
from featcache.benchmark.showing import files, page
from featcache.cli.terminal import Terminal

_WEIGHTS = {"vgg16": "vgg16_imagenet_features.safetensors", "inception_v3": "inception_v3_features.safetensors"}


def on_shared(options: BenchmarkOptions, shared: Path) -> BenchmarkOptions:
    """The options with the images and weights in `shared`; unchanged if nothing needs a download."""
    if options.name not in _WEIGHTS:
        return options
    images, weights = shared / "data" / "cifar10-images.zip", shared / "weights" / _WEIGHTS[options.name]
    # Relative paths, because a result is read on other machines.
    return replace(options, dataset=os.path.relpath(images), weights=os.path.relpath(weights))


def main(
    shared: Path,
    name: list[str] = typer.Option(["cifar10-vgg16"], "--scenario"),  # noqa: B008 - typer needs it as a default
    limit: int | None = None,
    epochs: int | None = None,
    heads: int | None = None,
    sample: int | None = None,
    sample_epochs: int | None = None,
) -> None:
    """Measure scenarios, with the given changes, and write their results."""
    changes: dict[str, Any] = {
        "limit": limit, "epochs": epochs, "heads": heads, "sample": sample, "sample_epochs": sample_epochs
    }  # fmt: skip
    given = {option: value for option, value in changes.items() if value is not None}
    for each in name:
        with tempfile.TemporaryDirectory() as scratch, Terminal() as terminal:
            result = run_benchmark(
                replace(on_shared(scenario(each), shared), **given),
                data_dir=Path(scratch),
                command=command(),
                today=datetime.now(UTC).date(),
                reporter=terminal,
            )
        for file, content in files(result, f"end_to_end_{each}").items():
            (RESULTS / file).write_bytes(content)
        print(page(result))


if __name__ == "__main__":
    typer.run(main)
