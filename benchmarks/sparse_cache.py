"""Writes a cache of many millions of rows in segments that needs little disk space: its rows are holes, read as zeros.

Tables (ids, targets, digests, checksums) are real, so everything except reading rows costs as much as in a real cache.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.cache import LayerSpec, Selection, Spec
from featcache.cache.checksums import row_checksums, table_digest
from featcache.cache.header import build_header
from featcache.cache.info import CacheInfo
from featcache.cache.layout import FeatureAttributes, arrays_of, checksums_name, features_name, is_table
from featcache.cache.manifest import Manifest, Segment
from featcache.cache.segments import complete_manifest
from featcache.cache.tables import SplitTable
from featcache.cache.targets import label_column
from featcache.cache.trailer import Trailer

FEATURE_DIM = 2048
CLASSES = tuple(f"class {number}" for number in range(10))


def spec_of(feature_dim: int) -> Spec:
    """The spec of a cache with one layer of `feature_dim` values."""
    return Spec(
        backbone="simulated",
        layers=(LayerSpec(name="avgpool", weights="0" * 64, shape=(feature_dim,)),),
        transform={},
        decoder="pillow",
        precision="fp32",
        runner="eager",
        dtype="float16",
    )


def sparse_cache(
    folder: Path,
    splits: dict[str, int],
    *,
    segment_rows: int,
    feature_dim: int = FEATURE_DIM,
    complete: bool = True,
) -> Path:
    """Write the cache `folder` with the given rows per split: float16 zeros (N, feature_dim), ten classes in turn.

    `complete`: whether the manifest is complete; all segments are written in any case.
    """
    spec = spec_of(feature_dim)
    folder.mkdir(parents=True)
    segments = []
    for split, rows in splits.items():
        for first in range(0, rows, segment_rows):
            segment = Segment.plan(split, first, min(segment_rows, rows - first))
            segments.append(segment)
            _write(folder / segment.file, info_of(spec, f"simulated#{segment.file}"), split, first, segment.rows)
    info = info_of(spec, "simulated")
    manifest = Manifest(
        texts=info.texts(), segments=tuple(segments), segment_rows=segment_rows, command="featcache extract"
    )
    (complete_manifest(folder, manifest, info, split_tables(splits)) if complete else manifest).write(folder)
    return folder


def info_of(spec: Spec, source: str) -> CacheInfo:
    """The information that the cache, or one of its segments, stores about itself."""
    return CacheInfo(
        spec=spec,
        selection=Selection(source=source, splits=None, limit=None, select_seed=0),
        set_name="simulated",
        columns=(label_column(CLASSES),),
        provenance={"created": "2026-01-01T00:00:00+00:00"},
    )


def _write(path: Path, info: CacheInfo, split: str, first: int, rows: int) -> None:
    # Segments hold no targets: they are in a file of their own.
    info = replace(info, columns=())
    tables = _tables(info.spec, split, np.arange(first, first + rows))
    ids = tables[f"{split}/ids"]
    (layer,) = info.spec.layers
    places = arrays_of(info.spec, {split: rows}, {f"{split}/ids": ids.itemsize})
    name = features_name(split, layer.name)
    header = build_header(places, info.texts(), {name: FeatureAttributes(shape=layer.shape)})
    end = max(place.offset + place.nbytes for place in header.arrays.values())
    with path.open("wb") as file:
        file.write(header.data)
        for table, values in tables.items():
            file.seek(header.arrays[table].offset)
            values.tofile(file)
        file.seek(-(-end // 8) * 8)
        file.write(_trailer(header.data, file.tell(), tables, info, {split: rows}).to_bytes())


def _tables(spec: Spec, split: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
    digests = np.zeros((len(numbers), 32), np.uint8)
    digests[:, :8] = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)
    (layer,) = spec.layers
    zeros = row_checksums(np.zeros((1, layer.feature_dim), spec.dtype))
    return {
        f"{split}/ids": _ids(split, numbers),
        f"{split}/digests": digests,
        checksums_name(split, layer.name): np.repeat(zeros, len(numbers)),
    }


def _ids(split: str, numbers: np.ndarray) -> np.ndarray:
    return np.char.mod(f"{split}/%09d.jpg", numbers).astype(np.bytes_)


def split_tables(splits: dict[str, int]) -> dict[str, SplitTable]:
    """The tables of ids and targets; their digests are zeros, because completing does not write them."""
    return {
        split: SplitTable(
            ids=[one.decode() for one in _ids(split, np.arange(rows)).tolist()],
            digests=np.zeros((rows, 32), np.uint8),
            targets={"label": np.arange(rows) % len(CLASSES)},
        )
        for split, rows in splits.items()
    }


def _trailer(
    header: bytes, offset: int, tables: dict[str, np.ndarray], info: CacheInfo, rows: dict[str, int]
) -> Trailer:
    digests = {name: table_digest(np.ascontiguousarray(values)) for name, values in tables.items() if is_table(name)}
    size, last = 0, -1
    while size != last:
        trailer = Trailer(
            file_bytes=size,
            header_bytes=len(header),
            header_digest=table_digest(header),
            tables=digests,
            about=info.about(rows),
        )
        size, last = offset + len(trailer.to_bytes()), size
    return trailer
