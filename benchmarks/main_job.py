"""Measures the main task on real images and weights: `python benchmarks/main_job.py ../shared [--data-dir DIR]`.

Runs the commands with an empty data folder and stores their results: VGG16 on 2,000 CIFAR-10 images per split with the
notebook's head, Inception v3 on 500 per split, and the notebook's MLP on the pixels of all 60,000 images. Takes about
ten minutes on 2 cores.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import typer
from command import run
from machine import write

_HEAD = ["--head", "mlp:128,64", "--activation", "leaky_relu"]


def experiments(shared: Path) -> dict[str, tuple[list[str], list[str]]]:
    """The experiments by name: (options of the features, options of the head)."""
    images = ["-d", str(shared / "data" / "cifar10-images.zip")]
    vgg = ["-b", "vgg16", *images, "--weights", str(shared / "weights" / "vgg16_imagenet_features.safetensors")]
    inception = [
        "-b",
        "inception_v3",
        *images,
        "--weights",
        str(shared / "weights" / "inception_v3_features.safetensors"),
    ]
    return {
        "vgg16": ([*vgg, "--limit", "2000"], _HEAD),
        "inception_v3": ([*inception, "--limit", "500"], _HEAD),
        "pixels": (["-b", "pixels", *images, "--image-size", "32", "--normalize", "half"], ["--head", "mlp:64,16"]),
    }


def main(shared: Path, only: list[str] | None = None, data_dir: Path | None = None) -> None:
    """Run the experiments (all, or --only some) and write results/main_job.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = data_dir or Path(scratch) / "data"
        where = ["--data-dir", str(folder)]
        results = {}
        for name, (features, head) in experiments(shared.resolve()).items():
            if only and name not in only:
                continue
            extracted = run(["extract", *features, *where])
            trained = run(["train-head", *features, *head, *where, "--runs-dir", str(Path(scratch) / "runs")])
            hit = run(["extract", *features, *where])
            results[name] = {
                "extract": _select(extracted, "rows feature_dim computed reused seconds images_per_s wall_seconds"),
                "train_head": _select(
                    trained, "head parameters n epochs best_epoch seconds val last test wall_seconds"
                ),
                "extract_again": _select(hit, "computed reused seconds wall_seconds"),
            }
            print(json.dumps(results[name], indent=1), flush=True)
        print(write("main_job", results))


def _select(printed: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: printed[name] for name in names.split()}


if __name__ == "__main__":
    typer.run(main)
