"""Small caches for the tests of audits: clouds of points with chosen digests and ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec, Selection, Spec
from featcache.cache.tables import SplitTable
from featcache.cache.targets import label_column
from featcache.cache.writer import write_packed

Features = NDArray[Any]
Labels = NDArray[np.int64]
LAYER = "avgpool"
CLASSES = ("ant", "bee", "cow")


def clouds(
    images: int, *, dim: int = 32, classes: int = 3, distance: float = 3.0, seed: int = 0
) -> tuple[Features, Labels]:
    """Float32 (images, dim) and labels: one cloud per class; the centres are the same for all seeds."""
    centres = np.random.default_rng(1234).standard_normal((classes, dim)) * distance
    labels = np.arange(images) % classes
    noise = np.random.default_rng(seed).standard_normal((images, dim))
    return (centres[labels] + noise).astype(np.float32), labels


def write_cache(
    folder: Path,
    splits: Mapping[str, tuple[Features, Labels]],
    *,
    classes: tuple[str, ...] = CLASSES,
    ids: Mapping[str, Sequence[str]] | None = None,
    digests: Mapping[str, Sequence[bytes]] | None = None,
    source: str = "toy",
    augmented: Sequence[Features] = (),
    scaling: tuple[float, float] | None = None,
) -> FeatureCache:
    """Write a cache file into `folder` and open it.

    `ids`: by split, by default "train/00000", ...; `digests`: by split, by default the digest of each id. `augmented`:
    the features of each further view of train.
    """
    wide = next(iter(splits.values()))[0].shape[1]
    spec = Spec(
        backbone="toy",
        layers=(LayerSpec(name=LAYER, weights=None, shape=(wide,)),),
        transform={"size": [8, 8]},
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype=str(next(iter(splits.values()))[0].dtype),
        views=1 + len(augmented),
        view_seed=0 if augmented else None,
    )
    tables, donors = {}, []
    for name, (features, labels) in splits.items():
        names = tuple((ids or {}).get(name) or (f"{name}/{row:05d}" for row in range(len(labels))))
        row_digests = (digests or {}).get(name) or [hashlib.sha256(one.encode()).digest() for one in names]
        of_rows = np.frombuffer(b"".join(row_digests), np.uint8).reshape(-1, 32)
        tables[name] = SplitTable(ids=names, targets={"label": labels.astype(np.int64)}, digests=of_rows)
        views = [{LAYER: view} for view in augmented] if name == "train" else []
        donors.append(
            MemoryDonor(fingerprint=spec.fingerprint, digests=of_rows, features={LAYER: features}, augmented=views)
        )
    info = CacheInfo(
        spec=spec,
        selection=Selection(source=source, splits=None, limit=None, select_seed=0),
        set_name="toy",
        columns=(label_column(classes),),
    )
    scales = None if scaling is None else {LAYER: scaling}
    path = write_packed(folder / "toy.h5", info, tables=tables, donors=Donors(donors), scaling=scales)
    return FeatureCache.open(path)
