"""Arrays in memory with the interface of a cached layer, so that heads can be trained on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import CachedSplit, FeatureArray
from featcache.rows.cuts import SplitRows
from featcache.rows.features import Column, FeatureRows


class MemoryArray:
    """An array of features with the interface of a layer on disk (FeatureArray).

    Args:
        values: The features, float32 (N, D); no copy is made.
    """

    name, view, scale, offset = "features", 0, 1.0, 0.0

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.split = MemorySplit()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Copy the rows with the given numbers into `out`."""
        # mode="clip" avoids a copy; all numbers are in range.
        return np.take(self._values, rows, axis=0, out=out, mode="clip")


class MemorySplit:
    """The split of rows in memory (CachedSplit); their ids are their numbers."""

    name = "memory"

    def ids_at(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """The row numbers as text, counted from 0."""
        return tuple(str(int(row)) for row in rows)


def memory_rows(values: NDArray[np.float32], chosen: SplitRows) -> FeatureRows:
    """The rows `chosen` of an array, float32 (N, D)."""
    array = MemoryArray(values)
    column = Column(array=cast("FeatureArray", array), rows=chosen.rows)
    return FeatureRows(chosen=chosen, columns=(column,), split=cast("CachedSplit", array.split))
