"""Compares reading a cache with reading the raw file: `python benchmarks/storage.py [--gigabytes 6]`.

Cold: the file's pages were dropped from the page cache first (by posix_fadvise on the file, which needs no special
rights). For every ratio the two ways alternate in the same run; the result is the median of the ratios of the pairs.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from machine import write

from featcache.cache import Donors, FeatureCache, LayerSpec, Selection, Spec, SplitTable, write_packed
from featcache.cache.info import CacheInfo
from featcache.cache.manifest import Manifest, Segment
from featcache.cache.reader import FeatureArray
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.segments import complete_manifest
from featcache.cache.targets import label_column
from featcache.cache.verification import verify
from featcache.errors import CacheError

DIM = 4096
SEGMENT_ROWS = 8192
ROUNDS = 7


def spec() -> Spec:
    layer = LayerSpec(name="avgpool", weights="0" * 64, shape=(DIM,))
    return Spec(
        backbone="benchmark", layers=(layer,), transform={}, decoder="pillow", precision="fp32",
        runner="eager", dtype="float16",
    )  # fmt: skip


def build(folder: Path, rows: int) -> tuple[Path, Path, dict[str, float]]:
    """Write a cache of `rows` x 4,096 float16, in segments and packed; returns both paths and the seconds of each."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((SEGMENT_ROWS, DIM), np.float32).astype(np.float16)
    digests = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
    ids = tuple(f"train/{row:08d}" for row in range(rows))
    table = SplitTable(ids=ids, targets={"label": np.zeros(rows, np.int64)}, digests=digests)
    info = CacheInfo(
        spec=spec(),
        selection=Selection(source="benchmark", splits=None, limit=None, select_seed=0),
        set_name="benchmark",
        columns=(label_column(("one",)),),
    )
    began = time.monotonic()
    segments = []
    for start in range(0, rows, SEGMENT_ROWS):
        some = table.take(slice(start, start + SEGMENT_ROWS))
        segments.append(Segment.plan("train", start, len(some)))
        draft = SegmentDraft(folder / "b" / segments[-1].file, info, split="train", ids=some.ids)
        draft.put(np.arange(len(some)), {"avgpool": block[: len(some)]})
        draft.publish(some.digests)
    manifest = Manifest(texts=info.texts(), segments=tuple(segments), segment_rows=SEGMENT_ROWS, command="again")
    complete_manifest(folder / "b", manifest, info, {"train": table}).write(folder / "b")
    segments_s, began = time.monotonic() - began, time.monotonic()
    with FeatureCache.open(folder / "b") as cache:
        path = write_packed(folder / "b.h5", info, tables={"train": table}, donors=Donors([cache["train"]]))
    return path, folder / "b", {"segments_s": round(segments_s, 2), "packing_s": round(time.monotonic() - began, 2)}


def drop(path: Path) -> None:
    """Drop the file's pages from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def place(array: FeatureArray, path: Path) -> int:
    import h5py

    with h5py.File(path) as file:
        return int(file["train/features/avgpool"].id.get_offset())


def measure_pairs(ours: Callable[[], None], raw: Callable[[], None], before: Callable[[], None]) -> dict[str, float]:
    """The median seconds of both, and the median of the ratios of the pairs (ours / raw)."""
    pairs = []
    for turn in range(ROUNDS + 1):
        pair = {}
        # The order alternates, so that neither always finds the disk warm.
        for way in (ours, raw) if turn % 2 else (raw, ours):
            before()
            began = time.perf_counter()
            way()
            pair[way] = time.perf_counter() - began
        pairs.append((pair[ours], pair[raw]))
    del pairs[0]
    return {
        "featcache_s": statistics.median(a for a, _ in pairs),
        "raw_s": statistics.median(b for _, b in pairs),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def sequential(path: Path, array: FeatureArray) -> dict[str, Any]:
    """All rows in blocks of 8 MB, cold: featcache with and without row checks, against preadv into one buffer."""
    offset, total, rows = place(array, path), array.nbytes, (8 << 20) // (2 * DIM)
    fd = os.open(path, os.O_RDONLY)
    buffer = bytearray(8 << 20)

    def raw() -> None:
        for start in range(0, total, len(buffer)):
            os.preadv(fd, [memoryview(buffer)[: min(len(buffer), total - start)]], offset + start)

    def ours(verify: bool) -> Callable[[], None]:
        def read() -> None:
            for _ in array.blocks(rows, verify=verify):
                pass

        return read

    result = {
        "unchecked": measure_pairs(ours(False), raw, lambda: drop(path)),
        "checked": measure_pairs(ours(True), raw, lambda: drop(path)),
    }
    os.close(fd)
    return result


def gathers(path: Path, array: FeatureArray) -> dict[str, Any]:
    """256 random rows, warm, a hundred times: featcache against one preadv per row, in sorted order."""
    offset, row_bytes = place(array, path), 2 * DIM
    fd = os.open(path, os.O_RDONLY)
    rng = np.random.default_rng(1)
    batches = [rng.choice(min(len(array), 20_000), 256, replace=False) for _ in range(100)]
    out = np.empty((256, DIM), np.float16)
    view = memoryview(out.data).cast("B")

    def raw() -> None:
        for batch in batches:
            for place_ in np.argsort(batch):
                os.preadv(
                    fd, [view[place_ * row_bytes : (place_ + 1) * row_bytes]], offset + int(batch[place_]) * row_bytes
                )

    def ours(verify: bool) -> Callable[[], None]:
        def read() -> None:
            for batch in batches:
                array.gather(batch, out=out, verify=verify)

        return read

    result = {
        "unchecked": measure_pairs(ours(False), raw, lambda: None),
        "checked": measure_pairs(ours(True), raw, lambda: None),
    }
    os.close(fd)
    return result


def from_segments(packed: FeatureArray, path: Path, array: FeatureArray, folder: Path) -> dict[str, Any]:
    """The same rows from segments against one file, with row checks: all rows cold, and 256 random rows warm."""
    rows = (8 << 20) // (2 * DIM)
    rng = np.random.default_rng(1)
    batches = [rng.choice(min(len(array), 20_000), 256, replace=False) for _ in range(100)]

    def drop_all() -> None:
        for file in [path, *folder.glob("*.h5")]:
            drop(file)

    def read(some: FeatureArray) -> Callable[[], None]:
        def work() -> None:
            for _ in some.blocks(rows):
                pass

        return work

    def gather(some: FeatureArray) -> Callable[[], None]:
        def work() -> None:
            for batch in batches:
                some.gather(batch)

        return work

    return {
        "cold_sequential": measure_pairs(read(array), read(packed), drop_all),
        "warm_gather_of_256": measure_pairs(gather(array), gather(packed), lambda: None),
    }


def opening(path: Path) -> dict[str, float]:
    """Milliseconds to open a file, and to refuse the same file truncated at several positions."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        FeatureCache.open(path).close()
        times.append(time.perf_counter() - began)
    size = path.stat().st_size
    refusals = []
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / "copy.h5"
        copy.write_bytes(b"")
        os.truncate(copy, size)
        with path.open("rb") as source, copy.open("r+b") as target:
            # A sparse copy: header and trailer are real, the rows are holes.
            target.write(source.read(1 << 20))
            source.seek(size - (1 << 20))
            target.seek(size - (1 << 20))
            target.write(source.read())
        for length in [size - 1, size - 7, size - 40, size - 500, size - (1 << 16), size // 2, 5000, 100, 1, 0]:
            os.truncate(copy, length)
            refusals.append(statistics.median(refusal_s(copy) for _ in range(5)))
    return {
        "open_ms": round(1000 * statistics.median(times), 2),
        "refuse_truncated_ms_most": round(1000 * max(refusals), 2),
    }


def refusal_s(path: Path) -> float:
    """Seconds to refuse a damaged file."""
    began = time.perf_counter()
    try:
        FeatureCache.open(path)
    except CacheError:
        return time.perf_counter() - began
    raise AssertionError(f"{path} was opened")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(gigabytes: float = 6.0, folder: Path | None = None) -> None:
    """Build a cache of that size in a temporary folder, measure, and write results/storage.json."""
    rows = int(gigabytes * 1e9 / (2 * DIM))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        imports_mib = peak_mib()
        path, folder_of, seconds = build(Path(scratch), rows)
        built_mib = peak_mib()
        with FeatureCache.open(path) as cache:
            array = cache["train"].features
            drop(path)
            for _ in array.blocks(1024):
                pass
            streamed_mib = peak_mib()
            result: dict[str, Any] = {
                "rows": rows,
                "bytes": path.stat().st_size,
                "write": seconds,
                "peak_mib": {
                    "imports": round(imports_mib),
                    "after_build": round(built_mib),
                    "after_stream": round(streamed_mib),
                },
                "opening": opening(path),
                "warm_gather_of_256": gathers(path, array),
                "cold_sequential": sequential(path, array),
            }
            with FeatureCache.open(folder_of) as segments:
                result["segments"] = from_segments(array, path, segments["train"].features, folder_of)
        began = time.monotonic()
        assert verify(path, full=True).sound
        result["verify_full_s"] = round(time.monotonic() - began, 2)
    print(write("storage", result).read_text())


if __name__ == "__main__":
    typer.run(main)
