"""Measurements that run in new processes, to measure memory separately: `python benchmarks/scale_children.py NAME ...`.

Each prints one JSON object. `scale.py` starts them.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.images.listing import Listing
from featcache.images.samples import Sample, SampleIds, Samples
from featcache.images.source import ImageSource, Stamp

if TYPE_CHECKING:
    from featcache.heads.config import HeadConfig

_MIB = 1 << 20
_ROWS_AT_ONCE = 100_000


def memory(which: str) -> int:
    """Memory of this process in bytes: now (VmRSS) or its peak (VmHWM)."""
    (kilobytes,) = re.findall(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


class Timer:
    """Each call returns the seconds since the previous call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return round(self._last - before, 3)


# --- training ----------------------------------------------------------------------------------------------


def catalogue(folder: str) -> dict[str, Any]:
    """List caches, as `featcache ls` does."""
    from featcache.cache.catalog import list_caches

    timed = Timer()
    (entry,) = list_caches(Path(folder))
    return {"listing_s": timed(), "state": entry.state, "peak_mib": memory("VmHWM") // _MIB}


def first_batch(path: str, batch_size: str) -> dict[str, Any]:
    """Open the cache and read the first batch, as any reader of batches does; then a thousand more."""
    import torch

    from featcache.cache.reader import FeatureCache
    from featcache.training.preparation import open_prepared, prepare

    found, config = _training_config(batch_size)
    began, timed = time.perf_counter(), Timer()
    with FeatureCache.open(path) as cache:
        found["open_s"] = timed()
        prepared = prepare(cache, config, device=torch.device("cpu"))
        found["cut_s"] = timed()
        train, _val = open_prepared(prepared, config)
        batches = train.epoch(0, reuse=True)
        next(batches)
        found |= {"seconds": round(time.perf_counter() - began, 3), "peak_mib": memory("VmHWM") // _MIB}
        timed()
        for _number in range(1000):
            next(batches)
        rows_per_s = round(1000 * config.head_batch_size / timed())
        return found | {"rows_per_s": rows_per_s, "train_rows": len(train.rows), "streamed": not train.resident_bytes}


def first_step(path: str, batch_size: str) -> dict[str, Any]:
    """Prepare a training up to its first batch; its rows are digested and standardised first."""
    import torch

    from featcache.cache.reader import FeatureCache
    from featcache.training.checkpoints import rows_digest
    from featcache.training.fitting import standardisation
    from featcache.training.preparation import open_prepared, prepare

    found, config = _training_config(batch_size)
    began, timed = time.perf_counter(), Timer()
    with FeatureCache.open(path) as cache:
        prepared = prepare(cache, config, device=torch.device("cpu"))
        timed()
        rows_digest(prepared)
        found["identity_s"] = timed()
        train, _val = open_prepared(prepared, config)
        standardisation(train)
        found["standardising_s"] = timed()
        next(train.epoch(0, reuse=True))
        return found | {"seconds": round(time.perf_counter() - began, 3), "peak_mib": memory("VmHWM") // _MIB}


def _training_config(batch_size: str) -> tuple[dict[str, Any], HeadConfig]:
    from featcache.heads.config import HeadConfig

    # Imports everything that a training imports, so that memory is comparable.
    importlib.import_module("featcache.runs.fit")
    return {"imports_mib": memory("VmRSS") // _MIB}, HeadConfig(head="linear", head_batch_size=int(batch_size))


# --- planning and completing -------------------------------------------------------------------------------


def names(images: int) -> Samples:
    """Samples `train/000000000.jpg` and so on, in ten classes; built in pieces, to save memory."""
    text = bytearray()
    for start in range(0, images, _ROWS_AT_ONCE):
        numbers = range(start, min(start + _ROWS_AT_ONCE, images))
        text += "".join(f"train/{number:09d}.jpg" for number in numbers).encode()
    width = len(text) // images
    return Samples("train", bytes(text), np.arange(images + 1) * width, np.arange(images) % 10)


class Simulated(ImageSource):
    """Images whose bytes are their names: measures the cost of planning without reading a disk."""

    def __init__(self, images: int) -> None:
        classes = [f"class {number}" for number in range(10)]
        super().__init__(
            name="simulated",
            origin="simulated",
            listing=Listing(samples={"train": names(images)}, classes=tuple(classes)),
        )

    def read(self, sample: Sample) -> bytes:
        return sample.id.encode()

    def stamp(self, sample: Sample) -> Stamp:
        return ("simulated", 1)


def listing(images: str, data_dir: str, share: str) -> dict[str, Any]:
    """List images and plan segments; then read and digest the images of one share. `driver`: reads none."""
    from featcache.extraction.images import Images
    from featcache.extraction.reporting import LogReporter
    from featcache.extraction.request import Request
    from featcache.extraction.units import Shard, segment_rows_for, units_in, units_of

    before, timed = memory("VmRSS"), Timer()
    source = Simulated(int(images))
    found: dict[str, Any] = {"listing_s": timed(), "listing_bytes": memory("VmHWM") - before}
    request = Request(dataset=source, backbone="pixels", data_dir=Path(data_dir))
    chosen = Images(source, request, workers=2, skip_unreadable=False, rehash=False, reporter=LogReporter())
    rows = segment_rows_for(100.0, len(chosen))
    units = units_of(chosen.numbers, chosen.rows_of_splits, segment_rows=rows)
    found |= {"cutting_s": timed(), "segments": len(units)}
    for unit in units_in(units, Shard.parse(share)) if share != "driver" else ():
        chosen.read_unknown(unit.images)
        chosen.payloads.clear()
    found["share_s"] = timed()
    return found | {"rows": len(chosen), "peak_bytes": memory("VmHWM") - before}


def write_table(path: str, images: str, columns: str) -> dict[str, Any]:
    """Write a Parquet table of images that do not exist, with labels and, if requested, numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"path": pa.string(), "label": pa.string(), "weight": pa.float64()}
    schema = pa.schema([("path", kinds["path"]), *((name, kinds[name]) for name in columns.split(","))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, int(images), _ROWS_AT_ONCE):
            rows = range(start, min(start + _ROWS_AT_ONCE, int(images)))
            cells = {
                "path": [f"photographs/{row:09d}.jpg" for row in rows],
                "label": [f"class {row % 10}" for row in rows],
                "weight": [row / 7 for row in rows],
            }
            writer.write_batch(pa.record_batch([cells[name] for name in schema.names], schema=schema))
    return {"table_bytes": Path(path).stat().st_size}


def table(path: str, data_dir: str) -> dict[str, Any]:
    """Memory of a driver for a table: its listing, segments, and the targets that are written at the end."""
    from featcache.columns import ColumnOptions
    from featcache.extraction.images import Images
    from featcache.extraction.reporting import LogReporter
    from featcache.extraction.request import Request
    from featcache.extraction.units import segment_rows_for, units_of
    from featcache.images.location import open_images

    libraries, timed = memory("VmRSS"), Timer()
    source = open_images(path, columns=ColumnOptions())
    found: dict[str, Any] = {"listing_s": timed(), "libraries_mib": libraries // _MIB}
    request = Request(dataset=source, backbone="pixels", data_dir=Path(data_dir))
    chosen = Images(source, request, workers=2, skip_unreadable=False, rehash=False, reporter=LogReporter())
    units = units_of(chosen.numbers, chosen.rows_of_splits, segment_rows=segment_rows_for(100.0, len(chosen)))
    found |= {"cutting_s": timed(), "segments": len(units), "cut_peak_mib": memory("VmHWM") // _MIB}
    chosen.tables([])
    return found | {"targets_s": timed(), "rows": len(chosen), "peak_mib": memory("VmHWM") // _MIB}


def completing(folder: str) -> dict[str, Any]:
    """Complete a cache whose segments are all written, and open it; the time does not depend on the rows' bytes."""
    from sparse_cache import info_of

    from featcache.cache.manifest import Manifest
    from featcache.cache.reader import FeatureCache
    from featcache.cache.segments import complete_manifest
    from featcache.cache.tables import SplitTable

    path = Path(folder)
    manifest = Manifest.read(path)
    info, rows = info_of(manifest.spec, "simulated"), manifest.rows["train"]
    # Ids in the compact form that an extraction uses.
    ids = SampleIds(names(rows))
    digests, labels = np.zeros((rows, 32), np.uint8), np.arange(rows) % 10
    tables = {"train": SplitTable(ids=ids, digests=digests, targets={"label": labels})}
    before, timed = memory("VmRSS"), Timer()
    complete_manifest(path, manifest, info, tables).write(path)
    found: dict[str, Any] = {"completing_s": timed()}
    with FeatureCache.open(path) as cache:
        found |= {"opening_s": timed(), "rows": len(cache["train"])}
    return found | {"segments": len(manifest.segments), "peak_bytes": memory("VmHWM") - before}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    child.__name__: child for child in (catalogue, first_batch, first_step, listing, write_table, table, completing)
}

if __name__ == "__main__":
    print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
