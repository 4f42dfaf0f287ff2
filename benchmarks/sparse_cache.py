"""A sharded cache of many millions of rows that takes little disk: its rows are zeros, and lie in holes.

Tables (labels, ids, digests, checksums) are real, so everything but the bytes of the rows costs what it would cost.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from featcache.cache import LayerSpec, Selection, Spec
from featcache.cache.checksums import row_checksums, table_digest
from featcache.cache.header import build_header
from featcache.cache.layout import FeatureAttributes, arrays_of, checksums_name, features_name, is_table
from featcache.cache.manifest import MANIFEST_NAME, Manifest, Shard, root_texts
from featcache.cache.stored import StoredFile
from featcache.cache.trailer import Trailer
from featcache.files import publish_bytes

FEATURE_DIM = 2048
CLASSES = tuple(f"class {number}" for number in range(10))


def spec_of(feature_dim: int) -> Spec:
    """One layer of so many values."""
    return Spec(
        backbone="simulated",
        layers=(LayerSpec(name="avgpool", weights="0" * 64, shape=(feature_dim,)),),
        transform={},
        decoder="pillow",
        precision="fp32",
        runner="eager",
        dtype="float16",
    )


def sparse_cache(folder: Path, splits: dict[str, int], *, rows_per_shard: int, feature_dim: int = FEATURE_DIM) -> Path:
    """Writes `<folder>` with `splits` rows each: (N, feature_dim) float16 zeros, ten classes in turn."""
    spec = spec_of(feature_dim)
    folder.mkdir(parents=True)
    runs = [
        (split, first, min(rows_per_shard, rows - first))
        for split, rows in splits.items()
        for first in range(0, rows, rows_per_shard)
    ]
    texts = _texts(spec, "simulated")
    shards = [
        _shard(folder / f"{number:05d}.h5", spec, *run, texts=_texts(spec, f"simulated#shard-{number}-of-{len(runs)}"))
        for number, run in enumerate(runs)
    ]
    manifest = Manifest(texts=texts, shards=tuple(shards))
    publish_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    return folder


def _texts(spec: Spec, source: str) -> dict[str, str]:
    return root_texts(
        spec=spec,
        selection=Selection(source=source, splits=None, limit=None, select_seed=0),
        set_name="simulated",
        classes=CLASSES,
        provenance={"created": "2026-01-01T00:00:00+00:00"},
        skipped=(),
    )


def _shard(path: Path, spec: Spec, split: str, first: int, rows: int, texts: dict[str, str]) -> Shard:
    numbers = np.arange(first, first + rows)
    tables = _tables(spec, split, numbers)
    ids = tables[f"{split}/ids"]
    (layer,) = spec.layers
    places = arrays_of(spec, {split: rows}, {split: ids.itemsize})
    name = features_name(split, layer.name)
    header = build_header(places, texts, {name: FeatureAttributes(shape=layer.shape)})
    end = max(place.offset + place.nbytes for place in header.arrays.values())
    with path.open("wb") as file:
        file.write(header.data)
        for table, values in tables.items():
            file.seek(header.arrays[table].offset)
            values.tofile(file)
        file.seek(-(-end // 8) * 8)
        file.write(_trailer(header.data, file.tell(), tables, texts, {split: rows}).to_bytes())
    opened = StoredFile.open(path)
    opened.close()
    return Shard.of(opened)


def _tables(spec: Spec, split: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
    digests = np.zeros((len(numbers), 32), np.uint8)
    digests[:, :8] = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)
    (layer,) = spec.layers
    zeros = row_checksums(np.zeros((1, layer.feature_dim), spec.dtype))
    text = np.char.mod(f"{split}/%09d.jpg", numbers)
    return {
        f"{split}/labels": (numbers % len(CLASSES)).astype("<i8"),
        f"{split}/ids": text.astype(np.bytes_),
        f"{split}/digests": digests,
        checksums_name(split, layer.name): np.repeat(zeros, len(numbers)),
    }


def _trailer(
    header: bytes, offset: int, tables: dict[str, np.ndarray], texts: dict[str, str], rows: dict[str, int]
) -> Trailer:
    digests = {name: table_digest(np.ascontiguousarray(values)) for name, values in tables.items() if is_table(name)}
    about = {
        "set_name": texts["set_name"],
        "spec": json.loads(texts["spec"]),
        "selection": json.loads(texts["selection"]),
        "rows": rows,
        "skipped": 0,
        "created": json.loads(texts["provenance"])["created"],
    }
    size, last = 0, -1
    while size != last:
        trailer = Trailer(
            file_bytes=size, header_bytes=len(header), header_digest=table_digest(header), tables=digests, about=about
        )
        size, last = offset + len(trailer.to_bytes()), size
    return trailer
