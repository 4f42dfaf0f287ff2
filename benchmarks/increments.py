"""What a change costs: `python benchmarks/increments.py ../shared`.

2,000 real CIFAR-10 images in a folder, VGG16 with real weights at 32 pixels. Ten images are edited, then one bit of
one weight: the first must cost ten rows, the second must be a miss that is named. A hit on all 60,000 images of the
zip is timed with `pixels`.
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
    """The first images of each class as files, `train/class/NNNN.jpg`."""
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
    """Mirrors an image and writes it again."""
    encoded = io.BytesIO()
    ImageOps.mirror(Image.open(path)).save(encoded, "JPEG")
    path.write_bytes(encoded.getvalue())


def kept(printed: dict[str, Any]) -> dict[str, Any]:
    return {name: printed[name] for name in ("computed", "reused", "seconds", "wall_seconds")}


def main(shared: Path) -> None:
    """Run it in a temporary folder and write results/increments.json."""
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
        told = run(["why", *options, "--weights", str(weights)])
        edited = run(["extract", *options, "--weights", str(weights)])
        flipped = root / "flipped.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        flipped.write_bytes(content)
        why = run(["why", *options, "--weights", str(flipped)])
        pixels = ["extract", "-b", "pixels", "-d", str(archive), "--image-size", "32", *where]
        result = {
            "extract_2000": kept(first),
            "ten_edited": kept(edited) | {"why_state": told["state"], "why_changed": len(told["changed"])},
            "one_bit_of_one_weight": {
                "why_state": why["state"],
                "differences": [difference["field"] for difference in why["nearest"][0]["differences"]],
            },
            "pixels_60000": kept(run(pixels)),
            "pixels_60000_again": kept(run(pixels)),
        }
    print(write("increments", result).read_text())


if __name__ == "__main__":
    typer.run(main)
