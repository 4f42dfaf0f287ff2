"""Measures large sets, in parts that can be run one at a time: `python benchmarks/scale.py ../shared`.

    training   a head on a simulated cache of ten million rows in segments: listing, opening, cutting, the first batch
    listing    ten million simulated images: memory of a driver and of shards that read their own images; completing
    table      a Parquet table that lists ten million images: memory of a driver
    workers    two processes of one thread each, against one process of two, on the same images (VGG16, eager, bf16)

Results are merged, part by part, into results/scale.json; `scale_page.py` writes the tables into docs/scale.md.
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

import typer
from parts import run_parts
from sparse_cache import FEATURE_DIM, sparse_cache

_CHILDREN = Path(__file__).parent / "scale_children.py"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The folders of the real images and weights, and the sizes."""

    shared: Path
    scratch: Path
    rows: int
    images: int
    worker_images: int
    rounds: int

    @property
    def archive(self) -> Path:
        return self.shared / "data" / "cifar10-images.zip"

    @property
    def weights(self) -> Path:
        return self.shared / "weights" / "vgg16_imagenet_features.safetensors"


def child(name: str, *words: str) -> dict[str, Any]:
    """Run a measurement of `scale_children.py` in a child process; returns the JSON that it prints."""
    done = subprocess.run([sys.executable, str(_CHILDREN), name, *words], check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


# --- the parts ---------------------------------------------------------------------------------------------


def training(setting: Setting) -> dict[str, Any]:
    """Measure a cache in which everything is real except the bytes of the rows, which are holes of a sparse file."""
    folder = setting.scratch / "features"
    folder.mkdir()
    path = sparse_cache(folder / "simulated", {"train": setting.rows}, segment_rows=max(1, setting.rows // 200))
    return {
        "rows": setting.rows,
        "feature_dim": FEATURE_DIM,
        "catalogue": child("catalogue", str(folder)),
        "first_batch": child("first_batch", str(path), "64"),
        "first_step": child("first_step", str(path), "64"),
    }


def listing(setting: Setting) -> dict[str, Any]:
    """Memory of a driver, and of one shard of 200 and of 20, which read and digest their own images."""
    shares = {
        share: child("listing", str(setting.images), str(setting.scratch / f"data-{number}"), share)
        for number, share in enumerate(("driver", "0/200", "0/20"))
    }
    rows = {"train": setting.images}
    folder = sparse_cache(
        setting.scratch / "standing", rows, segment_rows=max(1, setting.images // 400), feature_dim=8, complete=False
    )
    return {"images": setting.images, "shares": shares, "completing": child("completing", str(folder))}


def table(setting: Setting) -> dict[str, Any]:
    """List a table with and without a column of numbers, plan its segments, and read its targets."""
    found = {}
    for columns in ("label", "label,weight"):
        path = setting.scratch / f"{columns.replace(',', '-')}.parquet"
        written = child("write_table", str(path), str(setting.images), columns)
        found[columns] = written | child("table", str(path), str(setting.scratch / path.stem))
    return {"images": setting.images, "columns": found}


def workers(setting: Setting) -> dict[str, Any]:
    """Alternate both ways. Ratios of throughput: steady images per second, and images per second of wall time."""
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
    return _extract(setting, [[]], threads=2)


def _two_processes(setting: Setting) -> dict[str, float]:
    return _extract(setting, [["--shard", "0/2"], ["--shard", "1/2"]], threads=1)


def _extract(setting: Setting, each: list[list[str]], *, threads: int) -> dict[str, float]:
    """Run the processes at the same time, into an empty data folder; packing by the last process is included."""
    words = [sys.executable, "-m", "featcache", "extract", "-b", "vgg16", "-d", str(setting.archive)]
    words += ["--weights", str(setting.weights), "--split", "test", "--limit", str(setting.worker_images)]
    words += ["--precision", "bf16", "--runner", "eager", "--batch-size", "32", "--json", "--quiet"]
    words += ["--data-dir", tempfile.mkdtemp(dir=setting.scratch)]
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    began = time.perf_counter()
    running = [subprocess.Popen([*words, *more], env=environment, stdout=subprocess.PIPE, text=True) for more in each]
    printed = [json.loads(process.communicate()[0]) for process in running]
    wall_s = time.perf_counter() - began
    return {
        "images_per_s": round(sum(one["images_per_s"] for one in printed), 2),
        "images_per_s_wall": round(setting.worker_images / wall_s, 2),
        "wall_s": round(wall_s, 2),
    }


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "training": training,
    "listing": listing,
    "table": table,
    "workers": workers,
}


def main(
    shared: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts: {', '.join(PARTS)}.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of the simulated cache.")] = 10_000_000,
    images: Annotated[int, typer.Option(help="Images that are listed.")] = 10_000_000,
    worker_images: Annotated[int, typer.Option(help="With a multiple of 128, both shards get the same number.")] = 384,
    rounds: int = 3,
) -> None:
    """Measure the parts and merge them into results/scale.json."""

    def setting(scratch: Path) -> Setting:
        return Setting(
            shared=shared.resolve(), scratch=scratch, rows=rows, images=images,
            worker_images=worker_images, rounds=rounds,
        )  # fmt: skip

    run_parts("scale", PARTS, only, setting)


if __name__ == "__main__":
    typer.run(main)
