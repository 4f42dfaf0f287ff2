"""How long commands take that compute nothing: `python benchmarks/startup.py ../shared`.

    digits   a hit of `extract` on the digits, a set that comes with scikit-learn
    folder   a hit on a folder of 2,000 images
    zip      a hit on all 60,000 members of the CIFAR zip, at 8 pixels
    ls       `ls` of 100 caches

Each is a whole process, held against `python -c "import h5py, typer, rich"`: both run in turns, and the median of the
ratios counts. Results are merged, part by part, into results/startup.json.
"""

from __future__ import annotations

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

import typer
from parts import run_parts

FLOOR = (sys.executable, "-c", "import h5py, typer, rich")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the images lie, and how often everything is run."""

    shared: Path
    scratch: Path
    rounds: int

    @property
    def archive(self) -> Path:
        return self.shared / "data" / "cifar10-images.zip"


def digits(setting: Setting) -> dict[str, Any]:
    """The digits, as pixels."""
    return _hit(setting, "-b", "pixels", "-d", "digits")


def folder(setting: Setting) -> dict[str, Any]:
    """2,000 of CIFAR's images in class folders, through SqueezeNet at 32 pixels."""
    images = setting.scratch / "images"
    with zipfile.ZipFile(setting.archive) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        for name in names[:: len(names) // 2000][:2000]:
            path = images / Path(*Path(name).parts[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    return _hit(setting, "-b", "squeezenet1_1", "--weights", "random:0", "--image-size", "32", "-d", str(images))


def zip_members(setting: Setting) -> dict[str, Any]:
    """60,000 members of a zip."""
    return _hit(setting, "-b", "pixels", "--image-size", "8", "-d", str(setting.archive))


def listed(setting: Setting) -> dict[str, Any]:
    """A hundred caches."""
    _featcache(setting, "extract", "-b", "pixels", "-d", "digits", "--limit", "10")
    (cache,) = (setting.scratch / "data" / "features").glob("*.h5")
    for number in range(99):
        shutil.copy(cache, cache.with_name(f"copy-{number:02d}.h5"))
    return _against_floor(setting, ["ls"])


def _hit(setting: Setting, *options: str) -> dict[str, Any]:
    _featcache(setting, "extract", *options)
    return _against_floor(setting, ["extract", *options])


def _against_floor(setting: Setting, words: Sequence[str]) -> dict[str, Any]:
    pairs = []
    for turn in range(setting.rounds + 1):
        ways: list[Callable[[], float]] = [lambda: _seconds(FLOOR), lambda: _featcache(setting, *words)]
        taken = {number: ways[number]() for number in ((0, 1) if turn % 2 else (1, 0))}
        pairs.append((taken[1], taken[0]))
    # The first pair finds the disk cold.
    del pairs[0]
    return {
        "seconds": round(statistics.median(ours for ours, _ in pairs), 3),
        "floor_seconds": round(statistics.median(floor for _, floor in pairs), 3),
        "ratio": round(statistics.median(ours / floor for ours, floor in pairs), 2),
    }


def _featcache(setting: Setting, *words: str) -> float:
    return _seconds(
        [sys.executable, "-m", "featcache", *words, "--data-dir", str(setting.scratch / "data"), "--quiet", "--json"]
    )


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "digits": digits,
    "folder": folder,
    "zip": zip_members,
    "ls": listed,
}


def main(
    shared: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    rounds: int = 7,
) -> None:
    """Measures the parts and merges them into results/startup.json."""
    run_parts("startup", PARTS, only, lambda scratch: Setting(shared=shared.resolve(), scratch=scratch, rounds=rounds))


if __name__ == "__main__":
    typer.run(main)
