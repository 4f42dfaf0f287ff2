"""Small specs, rows and caches for the tests of caches."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from featcache.cache.checksums import table_digest
from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.layout import views_in
from featcache.cache.manifest import Manifest, Segment
from featcache.cache.reader import FeatureCache
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.segments import complete_manifest
from featcache.cache.spec import LayerSpec, Selection, Spec
from featcache.cache.tables import SplitTable
from featcache.cache.targets import label_column
from featcache.cache.trailer import FORMAT_VERSION, Trailer, read_trailer
from featcache.cache.writer import Scaling, write_packed
from featcache.columns import LABEL
from featcache.files import ReadableFile

CLASSES = ("cat", "dog", "frog")
LAYERS = (
    LayerSpec(name="avgpool", weights="a" * 64, shape=(4, 2, 2)),
    LayerSpec(name="features.30", weights="b" * 64, shape=(6,)),
)
ROWS = {"train": 40, "test": 12}


def a_spec(**changes: Any) -> Spec:
    """A spec of two small layers."""
    values: dict[str, Any] = {
        "backbone": "vgg16",
        "layers": LAYERS,
        "transform": {"size": 224, "mean": [0.485, 0.456, 0.406], "resize": "squash"},
        "decoder": "pillow",
        "precision": "fp32",
        "runner": "eager",
        "dtype": "float16",
    }
    return Spec(**{**values, **changes})


def a_selection(**changes: Any) -> Selection:
    """All images of a data set."""
    values: dict[str, Any] = {"source": "cifar10", "splits": None, "limit": None, "select_seed": 0}
    return Selection(**{**values, **changes})


def digests_of(ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """One SHA-256 for each id: uint8 (N, 32)."""
    joined = b"".join(hashlib.sha256(one.encode()).digest() for one in ids)
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def a_table(split: str, rows: int) -> SplitTable:
    """A split whose ids, digests and labels follow from its name and length."""
    ids = tuple(f"{split}/{CLASSES[row % 3]}/{row:04d}.jpg" for row in range(rows))
    return SplitTable(ids=ids, digests=digests_of(ids), targets={LABEL: np.arange(rows) % 3})


def tables(rows: Mapping[str, int] = ROWS) -> dict[str, SplitTable]:
    """A table for each split."""
    return {split: a_table(split, count) for split, count in rows.items()}


def rows_for(spec: Spec, digests: npt.NDArray[np.uint8], view: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Features that follow from the digests and the view alone: {layer: (N, D)}."""
    features = {}
    for layer in spec.layers:
        seeds = digests[:, :4].copy().view("<u4")[:, 0].astype(np.float64)
        values = (seeds[:, None] * (np.arange(layer.feature_dim) + len(layer.name) + 7 * view)) % 251
        features[layer.name] = (values if spec.dtype == "uint8" else values / 16).astype(spec.dtype)
    return features


def donors_of(spec: Spec, split_tables: Mapping[str, SplitTable]) -> Donors:
    """All rows of the tables, in memory."""
    digests = np.concatenate([table.digests for table in split_tables.values()])
    augmented = [rows_for(spec, digests, view) for view in range(1, spec.views)]
    features = rows_for(spec, digests)
    return Donors([MemoryDonor(fingerprint=spec.fingerprint, digests=digests, features=features, augmented=augmented)])


def an_info(spec: Spec | None = None, **changes: Any) -> CacheInfo:
    """The metadata of a sample cache. `classes`: those of `label`, its only target."""
    values: dict[str, Any] = {
        "spec": spec or a_spec(),
        "selection": a_selection(),
        "set_name": "cifar10",
        "columns": (label_column(CLASSES),),
        "provenance": {"created": "2026-11-24T06:00:00+00:00"},
    }
    if "classes" in changes:
        changes["columns"] = (label_column(changes.pop("classes")),)
    return CacheInfo(**{**values, **changes})


def make_cache(
    path: Path,
    spec: Spec | None = None,
    split_tables: Mapping[str, SplitTable] | None = None,
    scaling: Scaling | None = None,
    **info: Any,
) -> Path:
    """A packed cache at `path`."""
    spec, split_tables = spec or a_spec(), split_tables or tables()
    return write_packed(
        path, an_info(spec, **info), tables=split_tables, donors=donors_of(spec, split_tables), scaling=scaling
    )


def write_segment(folder: Path, info: CacheInfo, segment: Segment, table: SplitTable) -> Path:
    """One segment with rows that follow from its digests."""
    draft = SegmentDraft(folder / segment.file, info, split=segment.split, ids=table.ids)
    for view in range(views_in(info.spec, segment.split)):
        draft.put(np.arange(len(table)), rows_for(info.spec, table.digests, view), view)
    return draft.publish(table.digests)


def make_segments(
    folder: Path,
    spec: Spec | None = None,
    split_tables: Mapping[str, SplitTable] | None = None,
    *,
    segment_rows: int = 16,
    written: int | None = None,
    write: Callable[[Path, CacheInfo, Segment, SplitTable], object] = write_segment,
    **changes: Any,
) -> Path:
    """The folder of a cache in segments: complete, or with only the first `written` segments; `write` writes one."""
    info, split_tables = an_info(spec, **changes), split_tables or tables()
    cuts = [
        (Segment.plan(split, first, len(table.ids[first : first + segment_rows])), first)
        for split, table in split_tables.items()
        for first in range(0, len(table), segment_rows)
    ]
    manifest = Manifest(
        texts=info.texts(),
        segments=tuple(segment for segment, _ in cuts),
        segment_rows=segment_rows,
        command="featcache extract -b vgg16",
    )
    manifest.write(folder)
    for segment, first in cuts[:written]:
        write(folder, info, segment, split_tables[segment.split].take(slice(first, first + segment_rows)))
    if written is None:
        complete_manifest(folder, manifest, info, split_tables).write(folder)
    return folder


def assert_whole(path: Path, spec: Spec, split_tables: Mapping[str, SplitTable]) -> None:
    """The cache holds exactly these rows."""
    with FeatureCache.open(path) as cache:
        assert cache.splits == tuple(split_tables)
        for name, table in split_tables.items():
            split = cache[name]
            assert split.ids == table.ids
            # A segment has no targets.
            assert set(cache.targets) in (set(), set(table.targets))
            for target in cache.targets:
                np.testing.assert_array_equal(split.target(target).values, table.targets[target])
            np.testing.assert_array_equal(split.digests, table.digests)
            for view in range(split.views):
                for layer, rows in rows_for(spec, table.digests, view).items():
                    np.testing.assert_array_equal(split.layer(layer, view)[:], rows)


def no_tmp_under(folder: Path) -> bool:
    """Whether there is no unfinished file."""
    return not list(folder.rglob("*.tmp-*"))


def trailer_of(path: Path) -> Trailer:
    """The trailer of a cache."""
    with ReadableFile(path) as file:
        return read_trailer(file)


def seal(path: Path, like: Trailer) -> None:
    """Append a valid trailer to an HDF5 file of another program, so that it is not refused for its seal."""
    data = path.read_bytes()
    data += bytes(-len(data) % 8)
    with h5py.File(path) as file:
        header_bytes = _first_byte_of_data(file) or len(data)
    size = 0
    for _ in range(3):
        trailer = Trailer(
            file_bytes=size,
            header_bytes=header_bytes,
            header_digest=table_digest(data[:header_bytes]),
            tables=like.tables,
            about=like.about,
        )
        size = len(data) + len(trailer.to_bytes())
    path.write_bytes(data + trailer.to_bytes())


def reseal(path: Path, change: Mapping[str, Any]) -> None:
    """Replace the trailer by a valid one with other values."""
    old = trailer_of(path)
    data = path.read_bytes()[: -len(old.to_bytes())]
    values = {name: getattr(old, name) for name in Trailer.__dataclass_fields__}
    size = old.file_bytes
    for _ in range(3):
        trailer = Trailer(**{**values, "file_bytes": size, **change})
        size = len(data) + len(trailer.to_bytes())
    path.write_bytes(data + trailer.to_bytes())


def reseal_header(path: Path) -> None:
    """Update the digest of the header in the trailer."""
    trailer = trailer_of(path)
    reseal(path, {"header_digest": table_digest(path.read_bytes()[: trailer.header_bytes])})


def _first_byte_of_data(file: h5py.File) -> int | None:
    offsets: list[int] = []

    def note(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and node.id.get_offset():
            offsets.append(node.id.get_offset())

    file.visititems(note)
    return min(offsets, default=None)


def flip(path: Path, position: int, mask: int = 1) -> None:
    """Flip bits of one byte; a second call restores them."""
    with path.open("r+b", buffering=0) as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def future_version(path: Path) -> None:
    """Raise the format version of a cache, as a later featcache would write it."""
    data = path.read_bytes()
    magic, _, length, _ = struct.unpack("<8sQQ16s", data[-40:])
    head = struct.pack("<8sQQ", magic, FORMAT_VERSION + 1, length)
    text = data[-40 - length : -40]
    path.write_bytes(data[:-40] + head + xxhash.xxh3_128_digest(text + head))
