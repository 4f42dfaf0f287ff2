"""Small caches with any ids, labels and features, written and read with featcache.cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """One split: ids, labels int64 (N,), and {layer: (N, D)}; `augmented`: the same layers of each further view."""

    ids: Sequence[str]
    labels: NDArray[np.int64]
    layers: Mapping[str, NDArray[Any]]
    augmented: Sequence[Mapping[str, NDArray[Any]]] = ()


def write_cache(
    folder: Path,
    splits: Mapping[str, Rows],
    *,
    classes: tuple[str, ...],
    scaling: Mapping[str, tuple[float, float]] | None = None,
) -> FeatureCache:
    """Write a cache into `folder` and open it; the train split determines the number of views."""
    views = 1 + len(splits["train"].augmented) if "train" in splits else 1
    layers = next(iter(splits.values())).layers
    spec = Spec(
        backbone="toy",
        layers=tuple(LayerSpec(name=name, weights=None, shape=(rows.shape[1],)) for name, rows in layers.items()),
        transform={"image_size": 8},
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype=str(next(iter(layers.values())).dtype),
        views=views,
        view_seed=0 if views > 1 else None,
    )
    tables = {name: _table(rows) for name, rows in splits.items()}
    donors = [
        MemoryDonor(
            fingerprint=spec.fingerprint,
            digests=tables[name].digests,
            features=rows.layers,
            augmented=rows.augmented,
        )
        for name, rows in splits.items()
    ]
    info = CacheInfo(
        spec=spec,
        selection=Selection(source="toy", splits=None, limit=None, select_seed=0),
        set_name="toy",
        columns=(label_column(classes),),
    )
    path = write_packed(folder / "toy.h5", info, tables=tables, donors=Donors(donors), scaling=scaling)
    return FeatureCache.open(path)


def _table(rows: Rows) -> SplitTable:
    # Every row is another image, even if ids repeat.
    texts = [f"{number} {name}" for number, name in enumerate(rows.ids)]
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
    return SplitTable(ids=tuple(rows.ids), targets={"label": rows.labels}, digests=np.stack(digests))
