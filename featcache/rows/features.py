"""Read rows of cached layers as NumPy arrays: chosen rows as stored, or all rows as float32 values.

    rows = FeatureRows.of(cache, cut.train, layers=("avgpool",))
    values = rows.values()                      # float32 (N, D)
    for block in rows.blocks():                 # float32 (n, D), in the order of the cache
        ...

This module does not import torch, because heads with a closed-form solver, and their predictions, do not need it.
rows/batches.py makes batches of tensors from it, for heads trained by gradient steps.

Train rows with augmented views are numbered view after view: row v * n + i is view v of image i of n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.rows.options import ALL_LAYERS
from featcache.rows.prefetch import read_ahead
from featcache.rows.scaling import scale_stored

if TYPE_CHECKING:
    from featcache.cache.reader import CachedSplit, FeatureArray, FeatureCache
    from featcache.rows.cuts import SplitRows

# Largest size of a block of rows as float32.
BLOCK_BYTES = 8 << 20
MOST_BLOCK_ROWS = 4096

# Rows of one layer, as stored: (n, d).
Stored = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One layer, and the chosen rows in it.

    Attributes:
        array: The layer, for the plain images.
        rows: int64 (n,) row numbers in the layer, in the order of the first cache's rows.
    """

    array: FeatureArray
    rows: NDArray[np.int64]

    def of_view(self, view: int) -> FeatureArray:
        """The layer for one augmented view of the same rows; view 0 is the plain image."""
        return self.array.split.layer(self.array.name, view) if view else self.array


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRows:
    """The features of the chosen images of one split: several layers concatenated, view after view.

    A row has `feature_dim` values, and takes `row_bytes` bytes as stored.

    Attributes:
        chosen: The images, as rows of `split`.
        columns: The layers, of one cache or of several (rows/joining.py).
        split: The split of the first cache.
        views: Number of views of each image; there are `views` times as many rows as images.
    """

    chosen: SplitRows
    columns: tuple[Column, ...]
    split: CachedSplit
    views: int = 1

    @classmethod
    def of(cls, cache: FeatureCache, chosen: SplitRows, layers: tuple[str, ...], views: int = 1) -> FeatureRows:
        """The rows `chosen` of the given layers, in their first `views` views."""
        split = cache[chosen.source]
        columns = tuple(Column(array=split.layer(layer), rows=chosen.rows) for layer in layers)
        return cls(chosen=chosen, columns=columns, split=split, views=views)

    def __len__(self) -> int:
        return self.views * self.images

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.chosen)

    @property
    def targets(self) -> NDArray[Any]:
        """Targets of all rows, view after view: (N,) or (N, C); see `SplitRows.targets`."""
        targets = self.chosen.targets
        return targets if self.views == 1 else np.concatenate([targets] * self.views)

    @property
    def arrays(self) -> tuple[FeatureArray, ...]:
        """The layers on disk."""
        return tuple(column.array for column in self.columns)

    def ids(self) -> tuple[str, ...]:
        """The sample ids of the images."""
        return self.split.ids_at(self.chosen.rows)

    @property
    def feature_dim(self) -> int:
        """Number of values of a row, over all layers."""
        return sum(int(array.shape[1]) for array in self.arrays)

    @property
    def row_bytes(self) -> int:
        """Number of bytes of a row as stored, over all layers."""
        return sum(int(array.shape[1]) * array.dtype.itemsize for array in self.arrays)

    @property
    def block_rows(self) -> int:
        """Number of rows per block where all rows are read in their order."""
        return max(1, min(MOST_BLOCK_ROWS, BLOCK_BYTES // (4 * self.feature_dim)))

    def empty(self, count: int) -> list[Stored]:
        """Uninitialised arrays for `count` rows: one array (count, d) per layer, in the stored dtype."""
        return [np.empty((count, array.shape[1]), array.dtype) for array in self.arrays]

    def read(self, positions: NDArray[np.int64], out: Sequence[Stored]) -> None:
        """Read the rows at ascending `positions` into `out`, one array (n, d) per layer.

        Raises HeadError naming rows with NaN or infinity, CacheDamaged for rows that differ from those written.
        """
        for view, part in self._parts(positions):
            images = positions[part] - view * self.images if view else positions[part]
            for column, stored in zip(self.columns, out, strict=True):
                array, rows = column.of_view(view), column.rows[images]
                array.gather(rows, out=stored[part])
                _require_finite(array, stored[part], rows)

    def read_stored(self) -> list[Stored]:
        """Read all rows: one array (N, d) per layer, as stored. Raises what `read` raises."""
        whole = self.empty(len(self))
        for part in slices(len(self), self.block_rows):
            self.read(np.arange(part.start, part.stop), [one[part] for one in whole])
        return whole

    def values(self) -> NDArray[np.float32]:
        """Read all rows as values: float32 (N, D). Raises what `read` raises."""
        values = np.empty((len(self), self.feature_dim), np.float32)
        start = 0
        for stored in self._read_blocks():
            block = values[start : start + len(stored[0])]
            self.fill(block, stored)
            start += len(block)
        return values

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Read all rows as values, in their order, one block at a time: float32 (n, D). Raises what `read` raises."""
        for stored in self._read_blocks():
            values = np.empty((len(stored[0]), self.feature_dim), np.float32)
            self.fill(values, stored)
            yield values

    def fill(self, values: NDArray[np.float32], stored: Sequence[Stored]) -> None:
        """Convert `stored`, one array (n, d) per layer, into `values`, float32 (n, D)."""
        start = 0
        for one, array in zip(stored, self.arrays, strict=True):
            part = values[:, start : start + one.shape[1]]
            part[...] = one
            scale_stored(part, float(array.scale), float(array.offset))
            start += one.shape[1]

    def _read_blocks(self) -> Iterator[list[Stored]]:
        """All rows as stored, one block at a time; a block is overwritten when the next but one is read."""
        buffers = cycle([self.empty(min(self.block_rows, len(self))) for _ in range(2)])

        def read(part: slice) -> list[Stored]:
            block = [one[: part.stop - part.start] for one in next(buffers)]
            self.read(np.arange(part.start, part.stop), block)
            return block

        yield from read_ahead(read, slices(len(self), self.block_rows))

    def _parts(self, positions: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
        """The views that ascending `positions` lie in, and the slice of `positions` of each."""
        ends = np.searchsorted(positions, np.arange(1, self.views + 1) * self.images).tolist()
        for view, (start, end) in enumerate(pairwise([0, *ends])):
            if start < end:
                yield view, slice(start, end)


def choose_layers(cache: FeatureCache, requested: tuple[str, ...] | None) -> tuple[str, ...]:
    """The layers to read: those requested, all of them for `all`, else the cache's only layer.

    Raises UnknownName for a layer that the cache does not have, InvalidOption where one of several must be named.
    """
    there = tuple(cache.layers)
    if requested == ALL_LAYERS:
        if len(there) > 1 and ALL_LAYERS[0] in there:
            raise InvalidOption(
                f"{cache.name} has a layer called all: all layers, or this one?", hint="name each --layer"
            )
        return there
    if requested is None:
        if len(there) != 1:
            raise InvalidOption(
                f"{cache.name} holds {len(there)} layers ({', '.join(there)}) and none was named",
                hint=f"--layer {there[0]}, or --layer all for all of them" if there else None,
            )
        return there
    for layer in requested:
        if layer not in there:
            raise UnknownName("layer", layer, there)
    return requested


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of `step` elements that cover a sequence of `length` elements."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _require_finite(array: FeatureArray, values: Stored, rows: NDArray[np.int64]) -> None:
    wrong = _rows_not_finite(values)
    if not len(wrong):
        return
    numbers = [int(rows[row]) for row in wrong]
    shown = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    (first,) = array.split.ids_at(numbers[:1])
    raise HeadError(
        f"NaN or infinity in layer {array.name}{f', view {array.view}' if array.view else ''}, "
        f"{array.split.name} rows {shown} (first: {first})",
        hint="extract again; --dtype float32 keeps what is too large for float16",
    )


def _rows_not_finite(values: Stored) -> NDArray[np.int64]:
    if values.dtype.kind != "f" or not values.size:
        return np.empty(0, np.int64)
    # For floats of one sign, the bits read as integers grow with the value, and NaN comes after infinity. So the
    # largest integer of a row shows it; for float16 this is 20 times as fast as the maximum of the floats. No copy is
    # made.
    size = values.dtype.itemsize
    wrong = np.zeros(len(values), bool)
    for kind, infinity in ((f"i{size}", np.inf), (f"u{size}", -np.inf)):
        wrong |= values.view(kind).max(axis=1) >= np.array(infinity, values.dtype).view(kind)
    return np.flatnonzero(wrong)
