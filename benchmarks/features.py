"""Writes caches of random features, of any size, for benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featcache.cache import Donors, FeatureCache, LayerSpec, Selection, Spec, SplitTable, write_packed
from featcache.cache.info import CacheInfo
from featcache.cache.manifest import Segment
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.targets import label_column

CLASSES = 10
_SEGMENT_BYTES = 128 << 20


def write_features(folder: Path, rows: Mapping[str, int], wide: int, views: int = 1) -> FeatureCache:
    """Write a cache with one Gaussian cloud per class, float16: `rows` per split, `wide` values per row.

    `views`: views of each train image.
    """
    rng = np.random.default_rng(0)
    centres = 0.1 * rng.standard_normal((CLASSES, wide), np.float32)
    layer = LayerSpec(name="avgpool", weights="0" * 64, shape=(wide,))
    spec = Spec(
        backbone="benchmark", layers=(layer,), transform={}, decoder="pillow", precision="fp32",
        runner="eager", dtype="float16", views=views, view_seed=0 if views > 1 else None,
    )  # fmt: skip
    info = CacheInfo(
        spec=spec,
        selection=Selection(source="benchmark", splits=None, limit=None, select_seed=0),
        set_name="benchmark",
        columns=(label_column(tuple(map(str, range(CLASSES)))),),
    )
    segments, tables = [], {}
    block = max(1, _SEGMENT_BYTES // (4 * wide))
    for split, count in rows.items():
        labels = np.arange(count) % CLASSES
        digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
        ids = tuple(f"{split}/{row:08d}" for row in range(count))
        tables[split] = SplitTable(ids=ids, targets={"label": labels}, digests=digests)
        for first in range(0, count, block):
            table = tables[split].take(slice(first, first + block))
            path = folder / "segments" / Segment.plan(split, first, len(table)).file
            draft = SegmentDraft(path, info, split=split, ids=table.ids)
            for view in range(views if split == "train" else 1):
                features = centres[table.targets["label"]] + rng.standard_normal((len(table), wide), np.float32)
                draft.put(np.arange(len(table)), {"avgpool": features.astype(np.float16)}, view)
            segments.append(FeatureCache.open(draft.publish(table.digests))[split])
    path = write_packed(folder / "benchmark.h5", info, tables=tables, donors=Donors(segments))
    return FeatureCache.open(path)
