"""Small caches for the tests of heads: clouds of points, written and read with featcache.cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.donors import Donors, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec, Selection, Spec
from featcache.cache.tables import SplitTable
from featcache.cache.targets import Column, label_column
from featcache.cache.writer import write_packed

LAYER = "avgpool"


@dataclass(frozen=True, kw_only=True, eq=False)
class Blobs:
    """The features and labels of one split; `more` holds further layers by name.

    `augmented`: the features of each further view, of the first layer only. `ids`: the sample ids of the rows; None for
    their numbers. `edited`: rows whose image bytes do not belong to their ids. `targets`: values of further targets.
    """

    features: NDArray[Any]
    labels: NDArray[np.int64]
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    ids: tuple[str, ...] | None = None
    edited: tuple[int, ...] = ()
    augmented: tuple[NDArray[Any], ...] = ()
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    layer: str = LAYER

    @property
    def layers(self) -> dict[str, NDArray[Any]]:
        return {self.layer: self.features, **self.more}

    @property
    def views(self) -> int:
        return 1 + len(self.augmented)


def blobs(
    images: int, *, dim: int = 16, classes: int = 3, seed: int = 0, distance: float = 2.0, views: int = 1
) -> Blobs:
    """One cloud of points per class, float16, sorted by class. The centres are the same for all seeds."""
    centres = np.random.default_rng(1234).standard_normal((classes, dim)) * distance
    labels, random = np.sort(np.arange(images) % classes), np.random.default_rng(seed)
    plain, *augmented = (
        (centres[labels] + random.standard_normal((images, dim))).astype(np.float16) for _ in range(views)
    )
    return Blobs(features=plain, labels=labels, augmented=tuple(augmented))


def write_cache(
    folder: Path,
    splits: Mapping[str, Blobs],
    *,
    classes: tuple[str, ...] = ("ant", "bee", "cow"),
    scaling: Mapping[str, tuple[float, float]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    backbone: str = "toy",
    columns: tuple[Column, ...] = (),
    spec: Spec | None = None,
) -> FeatureCache:
    """Write a cache file into `folder` and open it, with as many views as train has.

    `columns`: further targets besides the label. `spec`: of a real backbone; None for one that describes nothing.
    """
    views = splits["train"].views if "train" in splits else 1
    layers = next(iter(splits.values())).layers
    spec = spec or Spec(
        backbone=backbone,
        layers=tuple(LayerSpec(name=name, weights=None, shape=(rows.shape[1],)) for name, rows in layers.items()),
        transform={"size": [8, 8]},
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype=str(next(iter(layers.values())).dtype),
        views=views,
        view_seed=0 if views > 1 else None,
    )
    tables = {name: _table(name, split) for name, split in splits.items()}
    donors = [
        MemoryDonor(
            fingerprint=spec.fingerprint,
            digests=tables[name].digests,
            features=split.layers,
            augmented=[{LAYER: view} for view in split.augmented],
        )
        for name, split in splits.items()
    ]
    info = CacheInfo(
        spec=spec,
        selection=Selection(source="toy", splits=None, limit=None, select_seed=0),
        set_name="toy",
        columns=(label_column(classes), *columns),
        provenance=provenance or {},
    )
    path = write_packed(folder / f"{backbone}.h5", info, tables=tables, donors=Donors(donors), scaling=scaling)
    return FeatureCache.open(path)


def _table(split: str, rows: Blobs) -> SplitTable:
    ids = rows.ids or tuple(f"{split}/{row:05d}" for row in range(len(rows.labels)))
    contents = [sample + " edited" * (row in rows.edited) for row, sample in enumerate(ids)]
    digests = [np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8) for content in contents]
    return SplitTable(ids=ids, targets={"label": rows.labels, **rows.targets}, digests=np.stack(digests))
