"""Trains the notebook's seven perceptrons on all 60,000 images: `python benchmarks/reproduce.py ../shared [--seeds 3]`.

Runs `featcache reproduce` with an empty data folder (or that of `--data-dir`) and stores its result.
`fit_seconds_by_seed`: the time of all seven fits, for each seed; `wall_seconds`: the whole command; `load`: the load
of the system at the beginning and at the end, which shows whether the machine was busy.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer
from command import run
from machine import write

_RECIPES = ("mlp", "mlp-l1", "mlp-l2", "mlp-leaky", "mlp-dropout", "mlp-wide", "mlp-best")


def main(shared: Path, seeds: int = 3, data_dir: Path | None = None) -> None:
    """Run the seven recipes and write results/reproduce_mlp.json."""
    load = [round(os.getloadavg()[0], 2)]
    with tempfile.TemporaryDirectory() as scratch:
        images = ["-d", str(shared.resolve() / "data" / "cifar10-images.zip")]
        where = ["--data-dir", str(data_dir or Path(scratch) / "data"), "--runs-dir", str(Path(scratch) / "runs")]
        printed = run(["reproduce", *_RECIPES, *images, *where, "--seeds", str(seeds)])
    result = {
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": [*load, round(os.getloadavg()[0], 2)],
        "seeds": seeds,
        "wall_seconds": printed["wall_seconds"],
        "fit_seconds_by_seed": [
            round(sum(row["seeds"][seed]["seconds"] for row in printed["rows"]), 2) for seed in range(seeds)
        ],
        "rows": printed["rows"],
    }
    print(write("reproduce_mlp", result).read_text())


if __name__ == "__main__":
    typer.run(main)
