"""Measures reading: a cache beside the raw file, and a first extraction beside that of another commit.

Cold: the files were dropped from the page cache first.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cache_samples import a_spec, an_info, make_segments
from measure import Bench, compare, drop_from_memory, in_turns, measurement, time_of

from featcache import files
from featcache.cache import Donors, FeatureCache, LayerSpec, SplitTable, write_packed
from featcache.cache.checksums import row_checksums
from featcache.cache.info import CacheInfo
from featcache.cache.manifest import Segment
from featcache.cache.reader import FeatureArray
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.verification import verify

CLASSES = 10
_ABOUT: dict[str, Any] = {"set_name": "benchmark", "classes": tuple(map(str, range(CLASSES)))}
_SEGMENT_BYTES, _BLOCK_BYTES = 64 << 20, 8 << 20
_CHECKS = {"unchecked": False, "checked": True}
Work = Callable[[], None]


class Made(NamedTuple):
    """A cache in one file and the same in segments, and the seconds of writing each."""

    packed: Path
    segments: Path
    segments_s: float
    packing_s: float


def make_cache(folder: Path, rows: Mapping[str, int], wide: int) -> Made:
    """Write a cache with one Gaussian cloud per class, float16: `rows` per split, `wide` values per row."""
    rng, seconds = np.random.default_rng(0), 0.0
    centres = 0.1 * rng.standard_normal((CLASSES, wide), np.float32)

    def write(place: Path, info: CacheInfo, segment: Segment, table: SplitTable) -> None:
        features = centres[table.targets["label"]] + rng.standard_normal((len(table), wide), np.float32)
        stored, draft = features.astype(np.float16), _draft(place, info, segment, table)

        def publish() -> None:
            draft.put(np.arange(len(table)), {"avgpool": stored})
            draft.publish(table.digests)

        nonlocal seconds
        seconds += time_of(publish).clock

    tables = {split: _table(split, count) for split, count in rows.items()}
    folder_of = _segments(folder / "cache", tables, wide, max(1, _SEGMENT_BYTES // (2 * wide)), write)
    with FeatureCache.open(folder_of) as cache:
        donors, info = Donors([cache[split] for split in rows]), an_info(cache.spec, **_ABOUT)
        packing = time_of(lambda: write_packed(folder / "cache.h5", info, tables=tables, donors=donors))
    return Made(packing.result, folder_of, round(seconds, 2), round(packing.clock, 2))


def make_hollow_cache(folder: Path, rows: int, wide: int) -> Path:
    """Write a cache in 200 segments whose rows are holes in sparse files, read as zeros; all its tables are real."""
    files.system.fallocate = lambda descriptor, _, size: os.ftruncate(descriptor, size)

    def write(place: Path, info: CacheInfo, segment: Segment, table: SplitTable) -> None:
        draft = _draft(place, info, segment, table)
        draft._sums["avgpool", 0][:] = row_checksums(np.zeros((1, wide), np.float16))
        draft._written[:] = True
        draft.publish(table.digests)

    return _segments(folder, {"train": _table("train", rows)}, wide, max(1, rows // 200), write)


def _segments(folder: Path, tables: dict[str, SplitTable], wide: int, rows: int, write: Callable[..., None]) -> Path:
    spec = a_spec(backbone="benchmark", layers=(LayerSpec(name="avgpool", weights="0" * 64, shape=(wide,)),))
    return make_segments(folder, spec, tables, segment_rows=rows, write=write, **_ABOUT)


def _draft(folder: Path, info: CacheInfo, segment: Segment, table: SplitTable) -> SegmentDraft:
    return SegmentDraft(folder / segment.file, info, split=segment.split, ids=table.ids)


def _table(split: str, count: int) -> SplitTable:
    ids = tuple(f"{split}/{row:08d}" for row in range(count))
    digests = np.random.default_rng(len(split)).integers(0, 256, (count, 32), dtype=np.uint8)
    return SplitTable(ids=ids, targets={"label": np.arange(count) % CLASSES}, digests=digests)


@measurement("storage", "2 min", gigabytes=0.05)
def storage(bench: Bench, *, gigabytes: float = 1.5) -> dict[str, Any]:
    """Reading rows of 4,096 float16, in order and at random, over raw `preadv`; from segments; opening, verifying."""
    rounds, wide = 1 if bench.quick else max(bench.rounds, 7), 4096
    made = make_cache(bench.scratch, {"train": int(gigabytes * 1e9 / (2 * wide))}, wide)
    paths = [made.packed, *made.segments.glob("*.h5")]
    with FeatureCache.open(made.packed) as cache, FeatureCache.open(made.segments) as segments:
        array, parts = cache["train"].features, segments["train"].features
        raw_order, raw_random = _raw(made.packed, array)
        opened = statistics.median(time_of(lambda: FeatureCache.open(made.packed).close()).clock for _ in range(50))
        result = {
            "rows": len(array),
            "bytes": made.packed.stat().st_size,
            "write": {"segments_s": made.segments_s, "packing_s": made.packing_s},
            "opening": {"open_ms": round(1000 * opened, 2)},
            "warm_gather_of_256": {
                name: _pair(_at_random(array, check), raw_random, rounds) for name, check in _CHECKS.items()
            },
            "cold_sequential": {
                name: _pair(_in_order(array, check), raw_order, rounds, paths) for name, check in _CHECKS.items()
            },
            "segments": {
                "cold_sequential": _pair(_in_order(parts), _in_order(array), rounds, paths),
                "warm_gather_of_256": _pair(_at_random(parts), _at_random(array), rounds),
            },
        }
    whole = time_of(lambda: verify(made.packed, full=True).sound)
    assert whole.result
    return result | {"verify_full_s": round(whole.clock, 2)}


def _pair(ours: Work, raw: Work, rounds: int, cold: Sequence[Path] = ()) -> dict[str, float]:
    ways = {"featcache": ours, "raw": raw}
    return compare(in_turns(ways, rounds, before=lambda: drop_from_memory(cold)), "featcache", "raw")


def _in_order(array: FeatureArray, verify: bool = True) -> Work:
    def read() -> None:
        for _ in array.blocks(_BLOCK_BYTES // (2 * array.shape[1]), verify=verify):
            pass

    return read


def _batches(array: FeatureArray) -> list[np.ndarray]:
    # A hundred batches of 256 random rows of the first 20,000.
    rng, few = np.random.default_rng(1), min(len(array), 20_000)
    return [rng.choice(few, min(256, few), replace=False) for _ in range(100)]


def _at_random(array: FeatureArray, verify: bool = True) -> Work:
    batches, out = _batches(array), np.empty((256, array.shape[1]), np.float16)

    def read() -> None:
        for batch in batches:
            array.gather(batch, out=out[: len(batch)], verify=verify)

    return read


def _raw(path: Path, array: FeatureArray) -> tuple[Work, Work]:
    """The same readings by `preadv`: blocks of 8 MB, and the rows of a batch in sorted order, a call a row."""
    import h5py

    with h5py.File(path) as file:
        start = int(file["train/features/avgpool"].id.get_offset())
    descriptor, row_bytes = os.open(path, os.O_RDONLY), 2 * array.shape[1]
    buffer, batches = memoryview(bytearray(_BLOCK_BYTES)), _batches(array)

    def order() -> None:
        for at in range(0, array.nbytes, len(buffer)):
            os.preadv(descriptor, [buffer[: min(len(buffer), array.nbytes - at)]], start + at)

    def random() -> None:
        for batch in batches:
            for place in np.argsort(batch).tolist():
                view = buffer[place * row_bytes : (place + 1) * row_bytes]
                os.preadv(descriptor, [view], start + int(batch[place]) * row_bytes)

    return order, random


@measurement("reading:archive", "3 min", limit=50)
def first_extraction(bench: Bench, *, limit: int | None = None) -> dict[str, Any]:
    """A first extraction of the 60,000 members of the CIFAR zip as pixels at 32, cold, over --against."""
    few = ("--limit", limit) if limit else ()
    words = ("extract", "-d", bench.archive, "-b", "pixels", "--image-size", 32, *few, "--data-dir")

    def extract(checkout: Path) -> float:
        with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            return float(bench.featcache(*words, folder, checkout=checkout)["seconds"])

    ways = {name: functools.partial(extract, checkout) for name, checkout in bench.checkouts().items()}
    taken = in_turns(ways, bench.rounds, before=lambda: drop_from_memory([bench.archive]), warm=False)
    each = {name: [{"seconds": round(one.clock, 2), "extract_s": one.result} for one in taken[name]] for name in taken}
    rounds = [dict(zip(each, ones, strict=True)) for ones in zip(*each.values(), strict=True)]
    return {"rounds": rounds, "speed_over_before": compare(taken, "before", "here")["ratio"]}
