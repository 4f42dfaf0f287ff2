"""Rows that lie in memory, as if they were a layer of a cache: what is trained on a cache trains on an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import CachedSplit, FeatureArray
from featcache.rows.cuts import SplitRows
from featcache.rows.features import Column, FeatureRows


class MemoryArray:
    """Features float32 (N, D) with what is asked of a layer on disk.

    Args:
        values: The features; no copy is made.
    """

    name, view, scale, offset = "features", 0, 1.0, 0.0

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.split = MemorySplit()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Rows by their numbers, into `out`."""
        # Clipping, of numbers that are all there, saves a copy.
        return np.take(self._values, rows, axis=0, out=out, mode="clip")


class MemorySplit:
    """Where rows in memory come from: nowhere. They are called by their numbers."""

    name = "memory"

    def ids_at(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[str, ...]:
        """Their numbers, counted from 0."""
        return tuple(str(int(row)) for row in rows)


def memory_rows(values: NDArray[np.float32], chosen: SplitRows) -> FeatureRows:
    """Some rows of an array float32 (N, D)."""
    array = MemoryArray(values)
    column = Column(array=cast("FeatureArray", array), rows=chosen.rows)
    return FeatureRows(chosen=chosen, columns=(column,), split=cast("CachedSplit", array.split))
