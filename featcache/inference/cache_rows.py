"""The rows of a cache to export: chosen splits and layers, as values, read in blocks.

Values are the inputs of a head: rows that are stored in bytes (pixels) become float32, all others keep their stored
type. There is one row per image. Augmented views of the train images are separate arrays: view k has
`len(cache["train"])` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.cache.splits import FeatureArray
from featcache.errors import UnknownName

# The size of a block in memory, all layers together.
BLOCK_BYTES = 32 << 20

Advance = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlock:
    """Consecutive rows of one split.

    Args:
        first: The index of the first row among all exported rows.
        split: The split.
        ids: Their n ids.
        labels: int64 (n,), -1 for unlabelled.
        features: {layer: (n, D)}.
    """

    first: int
    split: str
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    features: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheRows:
    """The rows of some splits of a cache, one split after the other, in the cache's order."""

    cache: FeatureCache
    splits: tuple[str, ...]
    layers: tuple[str, ...]

    @classmethod
    def of(
        cls, cache: FeatureCache, splits: Sequence[str] | None = None, layers: Sequence[str] | None = None
    ) -> CacheRows:
        """The rows of the given splits and layers; None: all. Raises UnknownName for one that the cache lacks."""
        _require_known("split", splits or (), cache.splits)
        _require_known("layer", layers or (), cache.layers)
        return cls(
            cache=cache,
            splits=tuple(split for split in cache.splits if not splits or split in splits),
            layers=tuple(dict.fromkeys(layers)) if layers else cache.layers,
        )

    def __len__(self) -> int:
        return sum(len(self.cache[split]) for split in self.splits)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: len(self.cache[split]) for split in self.splits}

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return self.cache.classes

    @property
    def views(self) -> int:
        """Views of each train image, including the plain one; 1 where train is not exported."""
        return self.cache["train"].views if "train" in self.splits else 1

    def dim(self, layer: str) -> int:
        """D of a layer."""
        return self.cache.spec.layer(layer).feature_dim

    def dtype(self, layer: str) -> np.dtype[Any]:
        """The type of a layer's values."""
        array = self.cache[self.splits[0]].layer(layer)
        return array.dtype if _is_plain(array) else np.dtype(np.float32)

    def key(self, layer: str, view: int = 0) -> str:
        """The name of a layer's array.

        For plain images `features`, or `features/LAYER` where there are several layers; for view k `views/k/LAYER`.
        """
        if view:
            return f"views/{view}/{layer}"
        return "features" if len(self.layers) == 1 else f"features/{layer}"

    def count(self, view: int = 0) -> int:
        """The number of rows of a layer's array: for plain images all, for an augmented view those of train."""
        return len(self.cache["train"]) if view else len(self)

    def class_name(self, label: int) -> str:
        """The class of a label, "" for unlabelled."""
        return self.classes[label] if label >= 0 else ""

    def ids(self) -> list[str]:
        """All ids."""
        return [one for split in self.splits for one in self.cache[split].ids]

    def labels(self) -> NDArray[np.int64]:
        """All labels, int64 (N,)."""
        return np.concatenate([self.cache[split].labels for split in self.splits])

    def split_numbers(self) -> NDArray[np.int64]:
        """For every row the index of its split in `splits`, int64 (N,)."""
        return np.repeat(np.arange(len(self.splits)), list(self.counts.values()))

    def blocks(self, advance: Advance, view: int = 0) -> Iterator[RowBlock]:
        """Yield all rows, verified, in blocks of about `BLOCK_BYTES`; for an augmented view those of train.

        `advance(done, total)` is called after each block.
        """
        row_bytes = sum(self.dim(layer) * self.dtype(layer).itemsize for layer in self.layers)
        step = max(1, BLOCK_BYTES // max(row_bytes, 1))
        first = 0
        for name in ("train",) if view else self.splits:
            split = self.cache[name]
            for start in range(0, len(split), step):
                rows = slice(start, min(start + step, len(split)))
                yield RowBlock(
                    first=first,
                    split=name,
                    ids=split.ids[rows],
                    labels=split.labels[rows],
                    features={layer: _values(split.layer(layer, view), rows) for layer in self.layers},
                )
                first += rows.stop - rows.start
                advance(first, self.count(view))


def _require_known(kind: str, requested: Sequence[str], known: Sequence[str]) -> None:
    for name in requested:
        if name not in known:
            raise UnknownName(kind, name, known)


def _is_plain(array: FeatureArray) -> bool:
    return (array.scale, array.offset) == (1.0, 0.0)


def _values(array: FeatureArray, rows: slice) -> NDArray[Any]:
    stored = array.gather(rows)
    if _is_plain(array):
        return stored
    return stored.astype(np.float32) * np.float32(array.scale) + np.float32(array.offset)
