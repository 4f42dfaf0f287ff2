"""The notebook's seven perceptrons on all 60,000 images: `python benchmarks/reproduce.py ../shared [--seeds 3]`.

Runs `featcache reproduce` as a person would, on an empty data folder: the first call extracts the pixels and trains
one seed of all seven, the second finds the cache and trains `--seeds` of them. Takes about five minutes a seed on 2
cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer
from machine import write

_RECIPES = ("mlp", "mlp-l1", "mlp-l2", "mlp-leaky", "mlp-dropout", "mlp-wide", "mlp-best")


def run(words: list[str]) -> dict[str, Any]:
    """What `featcache WORDS --json` prints, and its whole time."""
    print("$ featcache", *words, flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "featcache", *words, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed | {"wall_seconds": round(time.monotonic() - began, 2)}


def main(shared: Path, seeds: int = 3) -> None:
    """Run the seven recipes cold with one seed and warm with --seeds, and write results/reproduce_mlp.json."""
    with tempfile.TemporaryDirectory() as scratch:
        images = ["-d", str(shared.resolve() / "data" / "cifar10-images.zip")]
        where = ["--data-dir", str(Path(scratch) / "data"), "--runs-dir", str(Path(scratch) / "runs")]
        words = ["reproduce", *_RECIPES, *images, *where]
        result = {"cold_one_seed": run(words)}
        print(write("reproduce_mlp", result), flush=True)
        if seeds > 1:
            result["warm"] = run([*words, "--seeds", str(seeds)])
        for row in result["warm" if seeds > 1 else "cold_one_seed"]["rows"]:
            print(row["recipe"], f"{100 * row['last']['accuracy']:.2f}", row["epochs"], row["agrees"])
        print(write("reproduce_mlp", result))


if __name__ == "__main__":
    typer.run(main)
