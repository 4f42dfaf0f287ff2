"""Measures commands that compute little or nothing: `python benchmarks/startup.py ../shared`.

    digits            a hit of `extract` on the digits, a set that comes with scikit-learn
    folder            a hit on a folder of 2,000 images
    zip               a hit on all 60,000 members of the CIFAR zip, at 8 pixels
    ls                `ls` of 100 caches
    linear            `train-head --head linear --max-epochs 3` on the digits, against the import of torch plus the fit
    ridge, centroid   heads that are solved, on the same cache
    predict-mlp       `predict` for one image, with a head on pixels that was trained by steps
    predict-solved    the same with a head that was solved

Each is a whole process, compared with a process that only imports the necessary libraries. Both run in turns; the
results are medians of the ratios of wall time and of processor time. Results are merged, part by part, into
results/startup.json.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from parts import run_parts
from PIL import Image

FLOOR = "import h5py, typer, rich"
TORCH = "import torch"
SOLVER = "import sklearn.linear_model"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The time of a process, in seconds: wall time, and processor time of all its threads.

    `work`: seconds that are not start-up; they are added to the time of the process it is compared with.
    """

    clock: float
    processor: float
    printed: bytes = b""
    work: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The folders, and the number of rounds."""

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


def ls(setting: Setting) -> dict[str, Any]:
    """A hundred caches."""
    _featcache(setting, "extract", "-b", "pixels", "-d", "digits", "--limit", "10")
    (cache,) = (setting.scratch / "data" / "features").glob("*.h5")
    for number in range(99):
        shutil.copy(cache, cache.with_name(f"copy-{number:02d}.h5"))
    return _against_floor(setting, ["ls"])


def _hit(setting: Setting, *options: str) -> dict[str, Any]:
    _featcache(setting, "extract", *options)
    return _against_floor(setting, ["extract", *options])


def linear(setting: Setting) -> dict[str, Any]:
    """A head that is trained by steps, against the import of torch plus the reported seconds of its fit."""
    return _measure_training(setting, "linear", TORCH, "--max-epochs", "3")


def ridge(setting: Setting) -> dict[str, Any]:
    """A head that is solved, against the import of the package that solves it."""
    return _measure_training(setting, "ridge", SOLVER)


def centroid(setting: Setting) -> dict[str, Any]:
    """A head that needs only NumPy."""
    return _measure_training(setting, "centroid", FLOOR)


def predict_mlp(setting: Setting) -> dict[str, Any]:
    """Predict one image with a head that torch computes."""
    return _measure_prediction(setting, "mlp:16", TORCH, "--max-epochs", "3")


def predict_solved(setting: Setting) -> dict[str, Any]:
    """Predict one image with a head that NumPy computes."""
    return _measure_prediction(setting, "centroid", FLOOR)


def _measure_training(setting: Setting, head: str, floor: str, *options: str) -> dict[str, Any]:
    words = ["train-head", "--head", head, *options, "--runs-dir", str(setting.scratch / "runs")]
    _featcache(setting, "extract", "-b", "pixels", "-d", "digits")

    def ours() -> Taken:
        taken = _featcache(setting, *words)
        return replace(taken, work=json.loads(taken.printed)["seconds"]) if floor == TORCH else taken

    return _compare(setting, ours, floor)


def _measure_prediction(setting: Setting, head: str, floor: str, *options: str) -> dict[str, Any]:
    runs = str(setting.scratch / "runs")
    _featcache(setting, "extract", "-b", "pixels", "-d", "digits")
    trained = _featcache(setting, "train-head", "--head", head, *options, "--runs-dir", runs)
    image = setting.scratch / "image.png"
    Image.new("RGB", (8, 8), "grey").save(image)
    run = json.loads(trained.printed)["run"]
    return _compare(setting, lambda: _featcache(setting, "predict", run, str(image)), floor)


def _against_floor(setting: Setting, words: Sequence[str]) -> dict[str, Any]:
    return _compare(setting, lambda: _featcache(setting, *words), FLOOR)


def _compare(setting: Setting, ours: Callable[[], Taken], floor: str) -> dict[str, Any]:
    """Compare a command with a process that only imports, in turns."""
    pairs = []
    for turn in range(setting.rounds + 1):
        ways: list[Callable[[], Taken]] = [lambda: _process([sys.executable, "-c", floor]), ours]
        taken = {number: ways[number]() for number in ((0, 1) if turn % 2 else (1, 0))}
        mine, other = taken[1], taken[0]
        granted = replace(other, clock=other.clock + mine.work, processor=other.processor + mine.work)
        pairs.append((mine, granted))
    # The first pair reads from a cold disk and is not counted.
    del pairs[0]
    return {
        "floor": floor,
        "seconds": round(statistics.median(mine.clock for mine, _ in pairs), 3),
        "floor_seconds": round(statistics.median(other.clock for _, other in pairs), 3),
        "ratio": round(statistics.median(mine.clock / other.clock for mine, other in pairs), 2),
        "processor_seconds": round(statistics.median(mine.processor for mine, _ in pairs), 3),
        "floor_processor_seconds": round(statistics.median(other.processor for _, other in pairs), 3),
        "processor_ratio": round(statistics.median(mine.processor / other.processor for mine, other in pairs), 2),
    }


def _featcache(setting: Setting, *words: str) -> Taken:
    return _process(
        [sys.executable, "-m", "featcache", *words, "--data-dir", str(setting.scratch / "data"), "--quiet", "--json"]
    )


def _process(command: Sequence[str]) -> Taken:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(clock=clock, processor=spent, printed=printed)


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "digits": digits,
    "folder": folder,
    "zip": zip_members,
    "ls": ls,
    "linear": linear,
    "ridge": ridge,
    "centroid": centroid,
    "predict-mlp": predict_mlp,
    "predict-solved": predict_solved,
}


def main(
    shared: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    rounds: int = 7,
) -> None:
    """Measure the parts and merge them into results/startup.json."""
    run_parts("startup", PARTS, only, lambda scratch: Setting(shared=shared.resolve(), scratch=scratch, rounds=rounds))


if __name__ == "__main__":
    typer.run(main)
