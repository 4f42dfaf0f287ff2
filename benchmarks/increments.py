"""Measures the cost of a change: `python benchmarks/increments.py ../shared`.

Uses 2,000 real CIFAR-10 images in a folder, and VGG16 with real weights at 32 pixels. After ten images are edited, only
ten rows must be computed. After one bit of one weight is changed, `why` must report the difference. Also times `pixels`
on all 60,000 images of the zip, without and with the cache.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import typer
from command import run
from machine import write
from PIL import Image, ImageOps

_EDITED = 10


def unpack(archive: Path, folder: Path, per_class: int) -> list[Path]:
    """Write the first images of each class as files `train/class/NNNN.jpg`; returns their paths."""
    paths = []
    with zipfile.ZipFile(archive) as source:
        for name in sorted(source.namelist()):
            number = Path(name).stem
            if name.startswith("cifar10/train/") and number.isdecimal() and int(number) < per_class:
                path = folder / name.removeprefix("cifar10/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read(name))
                paths.append(path)
    return paths


def edit(path: Path) -> None:
    """Mirror an image and overwrite its file."""
    encoded = io.BytesIO()
    ImageOps.mirror(Image.open(path)).save(encoded, "JPEG")
    path.write_bytes(encoded.getvalue())


def select(printed: dict[str, Any]) -> dict[str, Any]:
    return {name: printed[name] for name in ("computed", "reused", "seconds", "wall_seconds")}


def main(shared: Path) -> None:
    """Measure in a temporary folder and write results/increments.json."""
    weights = shared / "weights" / "vgg16_imagenet_features.safetensors"
    archive = shared / "data" / "cifar10-images.zip"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        images = unpack(archive, root / "pictures", per_class=200)
        where = ["--data-dir", str(root / "data")]
        options = ["-b", "vgg16", "-d", str(root / "pictures"), "--image-size", "32", *where]
        first = run(["extract", *options, "--weights", str(weights)])
        for path in images[:: len(images) // _EDITED][:_EDITED]:
            edit(path)
        why_edited = run(["why", *options, "--weights", str(weights)])
        edited = run(["extract", *options, "--weights", str(weights)])
        flipped = root / "flipped.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        flipped.write_bytes(content)
        why_flipped = run(["why", *options, "--weights", str(flipped)])
        pixels = ["extract", "-b", "pixels", "-d", str(archive), "--image-size", "32", *where]
        result = {
            "extract_2000": select(first),
            "ten_edited": select(edited)
            | {"why_state": why_edited["state"], "why_changed": len(why_edited["changed"])},
            "one_bit_of_one_weight": {
                "why_state": why_flipped["state"],
                "differences": [difference["field"] for difference in why_flipped["nearest"][0]["differences"]],
            },
            "pixels_60000": select(run(pixels)),
            "pixels_60000_again": select(run(pixels)),
        }
    print(write("increments", result).read_text())


if __name__ == "__main__":
    typer.run(main)
