"""Measures a first extraction of 2,000 photographs: `python benchmarks/reading.py ../shared --against CHECKOUT`.

The photographs have 640x480 pixels. Parts:

    pixels      at 64 pixels: limited by decoding
    resnet18    with random weights at 64 pixels: computing takes about as long as decoding
    two         pixels and squeezenet1_1 in one command
    archive     all 60,000 images of CIFAR-10 from their zip, as pixels at 32

Each runs from this checkout and from another one (the commit before), in turns, each time in a new process and with the
images dropped from the page cache. Recorded are the seconds of the whole process and the bytes that it read; these show
whether an image was read twice. The photographs are enlarged CIFAR images with noise.

Results are merged, part by part, into results/reading.json.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from parts import run_parts
from PIL import Image

PHOTOGRAPHS = 2000
SIZE = (640, 480)
# Runs a featcache command and prints the number of bytes that the process has read.
_MEASURED = """
import re, sys
from featcache.cli.app import main
try:
    main()
finally:
    print(re.search(r"rchar: (\\d+)", open("/proc/self/io").read())[1], file=sys.stderr)
"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The images, the other checkout, and the number of rounds."""

    shared: Path
    scratch: Path
    against: Path
    rounds: int

    @property
    def archive(self) -> Path:
        """The zip of CIFAR-10."""
        return self.shared / "data" / "cifar10-images.zip"

    @property
    def images(self) -> Path:
        """The folder of photographs, made at the first call."""
        folder = self.scratch / "photographs"
        if not folder.exists():
            _make_photographs(self.archive, folder)
        return folder


def _make_photographs(archive: Path, folder: Path) -> None:
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as members:
        names = [name for name in members.namelist() if name.endswith(".jpg")]
        for number, name in enumerate(names[:: len(names) // PHOTOGRAPHS][:PHOTOGRAPHS]):
            small = Image.open(io.BytesIO(members.read(name)))
            pixels = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
            pixels = (pixels + noise.integers(-12, 13, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)
            path = folder / "train" / Path(name).parent.name / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=85)


def pixels(setting: Setting) -> dict[str, Any]:
    """Limited by decoding."""
    return _in_turns(setting, "-b", "pixels", "--image-size", "64")


def resnet18(setting: Setting) -> dict[str, Any]:
    """A network that computes about as fast as the images are decoded."""
    options = ("--weights", "random:0", "--image-size", "64", "--runner", "eager", "--precision", "fp32")
    return _in_turns(setting, "-b", "resnet18", *options)


def two(setting: Setting) -> dict[str, Any]:
    """Two backbones in one command."""
    options = ("--weights", "squeezenet1_1=random:0", "--image-size", "64", "--runner", "eager", "--precision", "fp32")
    return _in_turns(setting, "-b", "pixels", "-b", "squeezenet1_1", *options)


def archive(setting: Setting) -> dict[str, Any]:
    """Small images: listing, reading and writing cost more than decoding."""
    return _in_turns(setting, "-b", "pixels", "--image-size", "32", images=setting.archive)


def _in_turns(setting: Setting, *options: str, images: Path | None = None) -> dict[str, Any]:
    rounds = []
    checkouts = {"here": Path(__file__).parents[1], "before": setting.against}
    images = images or setting.images
    files = _files_of(images)
    nbytes = sum(path.stat().st_size for path in files)
    for turn in range(setting.rounds):
        names = list(checkouts) if turn % 2 else list(checkouts)[::-1]
        rounds.append({name: _extract(setting, images, checkouts[name], options) for name in names})
        print(rounds[-1], flush=True)
    return {
        "files": len(files),
        "images_bytes": nbytes,
        "rounds": rounds,
        "read_over_images": {
            name: round(statistics.median(one[name]["read_bytes"] for one in rounds) / nbytes, 3) for name in checkouts
        },
        "speed_over_before": round(
            statistics.median(one["before"]["seconds"] / one["here"]["seconds"] for one in rounds), 3
        ),
    }


def _files_of(images: Path) -> list[Path]:
    return [images] if images.is_file() else list(images.rglob("*.jpg"))


def _extract(setting: Setting, images: Path, checkout: Path, options: Sequence[str]) -> dict[str, float]:
    data_dir = setting.scratch / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    for path in _files_of(images):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    words = ["extract", *options, "-d", str(images), "--data-dir", str(data_dir), "--quiet", "--json"]
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, *words],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=setting.scratch,
    )
    seconds = time.perf_counter() - began
    found = json.loads(ran.stdout)
    computing_s = sum(one["seconds"] for one in found.get("extractions", [found]))
    # The bytes include the libraries, which are the same for both checkouts.
    return {
        "seconds": round(seconds, 2),
        "extract_s": round(computing_s, 2),
        "read_bytes": int(ran.stderr.strip().splitlines()[-1]),
    }


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "pixels": pixels,
    "resnet18": resnet18,
    "two": two,
    "archive": archive,
}


def main(
    shared: Path,
    against: Annotated[Path, typer.Option(help="A checkout of the previous commit.")],
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    rounds: int = 5,
) -> None:
    """Measure the parts and merge them into results/reading.json."""
    run_parts(
        "reading",
        PARTS,
        only,
        lambda scratch: Setting(shared=shared.resolve(), scratch=scratch, against=against.resolve(), rounds=rounds),
    )


if __name__ == "__main__":
    typer.run(main)
