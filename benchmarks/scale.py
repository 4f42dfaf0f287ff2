"""What large sets cost, in parts that can be run one at a time: `python benchmarks/scale.py ../shared`.

    training   a head on a simulated sharded cache of ten million rows: listing, opening, cutting, the first batch
    plan       ten million simulated images: listing, hashing, finding again, assembling; seconds and memory
    workers    two processes of one thread each against one of two, on the same images (VGG16, eager, bf16)
    model      measured constants, predictions held against measured runs, and what 1 to 100 million images would cost

Results are merged, part by part, into results/scale.json. `model` uses what `plan` has left there, and
`scale_page.py` puts the tables into docs/scale.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from command import run
from machine import RESULTS
from parts import run_parts
from scale_checks import Assumed, measured_model
from sparse_cache import FEATURE_DIM, sparse_cache, spec_of

_CHILDREN = Path(__file__).parent / "scale_children.py"
_MIB = 1 << 20
_PART_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the real images and weights lie, and how much of each."""

    shared: Path
    scratch: Path
    rows: int
    images: int
    worker_images: int
    rounds: int
    assumed: Assumed

    @property
    def archive(self) -> Path:
        return self.shared / "data" / "cifar10-images.zip"

    @property
    def weights(self) -> Path:
        return self.shared / "weights" / "vgg16_imagenet_features.safetensors"


def child(name: str, *words: str) -> dict[str, Any]:
    """What a child process of `scale_children.py` prints."""
    done = subprocess.run([sys.executable, str(_CHILDREN), name, *words], check=True, stdout=subprocess.PIPE, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


# --- the parts ---------------------------------------------------------------------------------------------


def training(setting: Setting) -> dict[str, Any]:
    """Everything but the bytes of the rows is real: they lie in holes."""
    folder = setting.scratch / "features"
    folder.mkdir()
    path = folder / "simulated.sharded"
    sparse_cache(path, {"train": setting.rows}, rows_per_shard=max(1, setting.rows // 10))
    return {
        "rows": setting.rows,
        "feature_dim": FEATURE_DIM,
        "catalogue": child("catalogue", str(folder)),
        "first_batch": child("first_batch", str(path), "64"),
        "first_step": child("first_step", str(path), "64"),
    }


def plan(setting: Setting) -> dict[str, Any]:
    """The first plan hashes every image and writes the index, the second one finds them there."""
    first, again = (child("planning", str(setting.images), str(setting.scratch / "data")) for _ in range(2))
    standing = setting.scratch / "standing.sharded"
    sparse_cache(standing, {"train": setting.images}, rows_per_shard=max(1, setting.images // 10), feature_dim=8)
    return {
        "images": setting.images,
        "first": first,
        "again": again,
        "assembling": child("assembling", str(standing), str(setting.scratch / "assembled.h5")),
        "parts": _opened_parts(setting.scratch / "some.parts"),
    }


def _opened_parts(folder: Path) -> dict[str, Any]:
    from featcache.cache import write_part

    digests = np.random.default_rng(0).integers(0, 256, (_PART_ROWS, 32), np.uint8)
    for number in range(2000):
        write_part(
            folder,
            fingerprint=spec_of(8).fingerprint,
            first_row=number * _PART_ROWS,
            digests=digests,
            features={"avgpool": np.zeros((_PART_ROWS, 8), np.float16)},
            provenance={"versions": {f"package {row}": "1.2.3" for row in range(12)}},
        )
    return child("parts", str(folder))


def workers(setting: Setting) -> dict[str, Any]:
    """Rounds of both, alternating. Ratios of throughput: steady images per second, and whole wall times."""
    rounds = []
    for number in range(setting.rounds):
        ways: list[Callable[[Setting], dict[str, float]]] = [_one_process, _two_processes]
        found = {way.__name__.strip("_"): way(setting) for way in (ways if number % 2 == 0 else ways[::-1])}
        rounds.append(found)
        print(found, flush=True)
    return {
        "images": setting.worker_images,
        "rounds": rounds,
        "ratios": {
            name: round(statistics.median(one["two_processes"][name] / one["one_process"][name] for one in rounds), 3)
            for name in ("images_per_s", "images_per_s_wall")
        },
    }


def _one_process(setting: Setting) -> dict[str, float]:
    return _extracted(setting, [[]], threads=2)


def _two_processes(setting: Setting) -> dict[str, float]:
    return _extracted(setting, [["--shard", "0/2"], ["--shard", "1/2"]], threads=1)


def _extracted(setting: Setting, each: list[list[str]], *, threads: int) -> dict[str, float]:
    """Processes at once, from nothing; assembling, which one process does for both, is not counted for two."""
    words = [sys.executable, "-m", "featcache", "extract", "-b", "vgg16", "-d", str(setting.archive)]
    words += ["--weights", str(setting.weights), "--split", "test", "--limit", str(setting.worker_images)]
    words += ["--precision", "bf16", "--runner", "eager", "--batch-size", "32", "--json", "--quiet"]
    words += ["--data-dir", tempfile.mkdtemp(dir=setting.scratch)]
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    began = time.perf_counter()
    running = [subprocess.Popen([*words, *more], env=environment, stdout=subprocess.PIPE, text=True) for more in each]
    said = [json.loads(process.communicate()[0]) for process in running]
    wall_s = time.perf_counter() - began
    return {
        "images_per_s": round(sum(one["images_per_s"] for one in said), 2),
        "images_per_s_wall": round(setting.worker_images / wall_s, 2),
        "wall_s": round(wall_s, 2),
    }


def model(setting: Setting) -> dict[str, Any]:
    """Constants, checks and predictions; see `scale_checks.py`."""
    there = json.loads((RESULTS / "scale.json").read_text()) if (RESULTS / "scale.json").exists() else {}
    if "plan" not in there:
        raise typer.BadParameter("the model needs what the part plan measures: run that first")
    return measured_model(
        run,
        archive=setting.archive,
        scratch=setting.scratch,
        planned=there["plan"],
        assumed=setting.assumed,
    )


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "training": training,
    "plan": plan,
    "workers": workers,
    "model": model,
}


def main(
    shared: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    rows: Annotated[int, typer.Option(help="Of the simulated cache.")] = 10_000_000,
    images: Annotated[int, typer.Option(help="Of the simulated plan.")] = 10_000_000,
    worker_images: Annotated[int, typer.Option(help="A multiple of 128 gives both shards as many.")] = 384,
    rounds: int = 3,
    gpu_tflops: Annotated[float, typer.Option(help="Assumed: a card's published peak (A100, bf16, dense).")] = 312,
    gpu_share: Annotated[float, typer.Option(help="Assumed: of which a network reaches so much.")] = 0.3,
    gpu_cores: Annotated[int, typer.Option(help="Assumed: processor cores that feed one card.")] = 16,
    store_gb_per_s: Annotated[float, typer.Option(help="Assumed: what a shared store gives and takes.")] = 5,
    image_kb: Annotated[int, typer.Option(help="Assumed: an encoded photograph.")] = 100,
) -> None:
    """Measures the parts and merges them into results/scale.json."""
    assumed = Assumed(
        peak_tflops=gpu_tflops, share=gpu_share, cores=gpu_cores, store_gb_per_s=store_gb_per_s,
        image_bytes=1000 * image_kb,
    )  # fmt: skip

    def setting(scratch: Path) -> Setting:
        return Setting(
            shared=shared.resolve(), scratch=scratch, rows=rows, images=images,
            worker_images=worker_images, rounds=rounds, assumed=assumed,
        )  # fmt: skip

    run_parts("scale", PARTS, only, setting)


if __name__ == "__main__":
    typer.run(main)
