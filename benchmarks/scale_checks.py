"""The constants of the model of cost, measured by running commands, and its predictions held against other runs.

What a run is predicted by is never measured on that run: a backbone's rate and its start come from one number of
images, the checks have others.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from scale_model import Constants, Cost, Gpu, Work, Workers, cost

Run = Callable[[list[str]], dict[str, Any]]
_IMAGES = (1_000_000, 10_000_000, 100_000_000)
_GPUS = (1, 8, 64)
# Of a GPU, for which the default is too small: files are written faster than folders can take them.
PART_ROWS = 8192
# Networks of which predictions are made: values a row, operations an image (twice the multiply-adds, as featcache
# counts them), and the rows of a part by default.
NETWORKS = {"vgg16": (25088, 30.7e9, 64), "inception_v3": (2048, 11.4e9, 128)}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A backbone that is quick on any machine: its options, values a row, bytes of one, and numbers of images.

    `fitted`: those that its rate and its start are taken from; `checked`: those that are predicted.
    """

    options: tuple[str, ...]
    values: int
    value_bytes: int
    part_rows: int
    fitted: tuple[int, int]
    checked: tuple[int, ...]


# 55,250,913 bytes are 60,000 images.
_CIFAR_BYTES = 921
_PLAIN = ("--precision", "fp32", "--runner", "eager")
_TRIED = {
    "resnet18 at 64": Tried(
        options=("-b", "resnet18", "--weights", "random:0", "--image-size", "64", *_PLAIN),
        values=512, value_bytes=2, part_rows=1024, fitted=(64, 1000), checked=(500, 2000),
    ),
    "pixels at 128": Tried(
        options=("-b", "pixels", "--image-size", "128"),
        values=49152, value_bytes=1, part_rows=1024, fitted=(64, 2000), checked=(1000, 8000),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What nobody measured: a card, what feeds it, the store behind all of them, and the images.

    `peak_tflops`: published, dense, bf16. `share`: of which a network reaches so much. `cores`: of a processor, that
    decode for one card.
    """

    peak_tflops: float
    share: float
    cores: int
    store_gb_per_s: float
    image_bytes: int


def measured_model(
    run: Run, *, archive: Path, scratch: Path, planned: dict[str, Any], assumed: Assumed
) -> dict[str, Any]:
    """Constants, checks and predictions."""
    ground = _Ground(run=run, archive=archive, scratch=scratch)
    constants = _constants(planned, copied_bytes_per_s=_copied_bytes_per_s(ground))
    checks: list[dict[str, Any]] = []
    fitted: dict[str, Workers] = {}
    for name, tried in _TRIED.items():
        fitted[name] = workers = _workers(ground, tried, constants)
        checks += [_checked(ground, name, tried, images, workers, constants) for images in tried.checked]
    decoded_per_s = run(["doctor", "--data-dir", str(scratch)])["decode_images_per_s"]
    starting = max(workers.starting_s for workers in fitted.values())
    return {
        "constants": constants.to_json(),
        "fitted": {
            name: {"images_per_s": workers.images_per_s, "starting_s": round(workers.starting_s, 2)}
            for name, workers in fitted.items()
        },
        "checks": checks,
        "assumed": asdict(assumed),
        "decoded_per_s": decoded_per_s,
        "starting_s": round(starting, 2),
        "predictions": predictions(constants, assumed, decoded_per_s=decoded_per_s, starting_s=starting),
    }


def predictions(
    constants: Constants, assumed: Assumed, *, decoded_per_s: float, starting_s: float
) -> list[dict[str, Any]]:
    """One record for each network, number of images and number of GPUs."""
    gpu = Gpu(
        peak_flops=assumed.peak_tflops * 1e12, share=assumed.share, cores=assumed.cores, decoded_per_s=decoded_per_s
    )
    store = assumed.store_gb_per_s * 1e9
    found = []
    for network, (values, flops, part_rows) in NETWORKS.items():
        rate = gpu.images_per_s(flops)
        for images in _IMAGES:
            for gpus in _GPUS:
                work = Work(images=images, image_bytes=assumed.image_bytes, values=values, part_rows=PART_ROWS)
                workers = Workers(count=gpus, images_per_s=rate, starting_s=starting_s, store_bytes_per_s=store)
                said = cost(work, workers, constants)
                found.append(
                    {
                        "network": network,
                        "images": images,
                        "gpus": gpus,
                        "images_per_s_a_gpu": round(rate, 1),
                        "bound": "store" if said.store_bound else gpu.bound(flops),
                        "parts_by_default": replace(work, part_rows=part_rows).parts,
                        **said.to_json(),
                    }
                )
    return found


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Ground:
    run: Run
    archive: Path
    scratch: Path

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def extract(self, tried: Tried, images: int, folder: Path, *more: str, command: str = "extract") -> dict[str, Any]:
        words = [command, "-d", str(self.archive), "--split", "train", "--limit", str(images), *tried.options]
        return self.run([*words, "--part-rows", str(tried.part_rows), "--data-dir", str(folder), "--quiet", *more])


def _constants(planned: dict[str, Any], *, copied_bytes_per_s: float) -> Constants:
    images, first, again, parts = (planned[name] for name in ("images", "first", "again", "parts"))
    return Constants(
        listing_s=(again["listing_s"] + again["plan_s"] + again["distinct_s"]) / images,
        hashing_s=(first["plan_s"] - again["plan_s"]) / images,
        row_s=planned["assembling"]["assembling_s"] / images,
        part_s=parts["seconds"] / parts["parts"],
        hashed_bytes_per_s=_hashed_bytes_per_s(),
        copied_bytes_per_s=copied_bytes_per_s,
        plan_bytes=first["peak_bytes"] / images,
        known_plan_bytes=again["peak_bytes"] / images,
        assembling_bytes=planned["assembling"]["peak_bytes"] / images,
        part_bytes=parts["bytes"] / parts["parts"],
        # What is imported, PyTorch above all.
        process_bytes=_process_bytes(),
    )


def _hashed_bytes_per_s() -> float:
    """SHA-256 over blocks of a photograph's size, in the two threads that a plan has."""
    block, count = bytes(100_000), 10_000
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _number: sha256(block).digest(), range(count), chunksize=100))
    return len(block) * count / (time.perf_counter() - began)


def _process_bytes() -> float:
    code = "import featcache.extraction.run, torch; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", done.stdout)
    return int(kilobytes) * 1024.0


def _copied_bytes_per_s(ground: _Ground) -> float:
    """By how much `assemble` takes longer for more bytes: rows are read and checked, copied, checked and written."""
    tried = _TRIED["pixels at 128"]
    seconds, sizes = [], []
    for images in (2000, 6000):
        folder = ground.folder()
        ground.extract(tried, images, folder, "--shard", "0/1")
        seconds.append(ground.extract(tried, images, folder, command="assemble")["seconds"])
        sizes.append(images * tried.values * tried.value_bytes)
    return (sizes[1] - sizes[0]) / max(float(seconds[1] - seconds[0]), 1e-3)


def _workers(ground: _Ground, tried: Tried, constants: Constants) -> Workers:
    few, more = tried.fitted
    rate = ground.extract(tried, more, ground.folder())["images_per_s"]
    wall_s = ground.extract(tried, few, ground.folder())["wall_seconds"]
    alone = Workers(count=1, images_per_s=rate, starting_s=0.0)
    return replace(alone, starting_s=wall_s - cost(_work(tried, few), alone, constants).seconds)


def _work(tried: Tried, images: int) -> Work:
    return Work(
        images=images,
        image_bytes=_CIFAR_BYTES,
        values=tried.values,
        value_bytes=tried.value_bytes,
        part_rows=tried.part_rows,
        id_bytes=len("train/automobile/0001.jpg"),
    )


def _checked(
    ground: _Ground, name: str, tried: Tried, images: int, workers: Workers, constants: Constants
) -> dict[str, Any]:
    folder = ground.folder()
    done = ground.extract(tried, images, folder)
    (cache,) = folder.glob("features/*.h5")
    said = cost(_work(tried, images), workers, constants)
    return {
        "what": name,
        "images": images,
        "seconds": {"predicted": round(said.seconds, 2), "measured": done["wall_seconds"]},
        "cache_bytes": {"predicted": said.cache_bytes, "measured": cache.stat().st_size},
        **_checked_parts(ground, tried, images, said),
    }


def _checked_parts(ground: _Ground, tried: Tried, images: int, said: Cost) -> dict[str, Any]:
    """Once more, as a share of the work, whose parts stay."""
    folder = ground.folder()
    ground.extract(tried, images, folder, "--shard", "0/1")
    parts = list(folder.glob("features/*.parts/*.safetensors"))
    return {
        "parts": {"predicted": said.parts, "measured": len(parts)},
        "parts_bytes": {"predicted": said.parts_bytes, "measured": sum(part.stat().st_size for part in parts)},
    }
