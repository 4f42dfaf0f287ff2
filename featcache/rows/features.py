"""Cached features as NumPy arrays: which rows of which layers, read at their places, or all of them as float32.

    rows = FeatureRows.of(cache, cut.train, layers=("avgpool",))
    values = rows.values()                      # float32 (N, D)
    for block in rows.blocks():                 # float32 (n, D), in the order of the cache
        ...

No torch here: heads that are solved, and their predictions, do without it. Batches of tensors for heads that are
trained by steps are made on top of this (rows/batches.py).

Rows of a train part with augmented views are counted view after view: row v * n + i is view v of image i of n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError, InvalidOption, UnknownName
from featcache.rows.prefetch import read_ahead
from featcache.rows.scaling import scale_stored

if TYPE_CHECKING:
    from featcache.cache.reader import CachedSplit, FeatureArray, FeatureCache
    from featcache.rows.cuts import SplitRows

# What a block of rows may take as float32.
BLOCK_BYTES = 8 << 20
MOST_BLOCK_ROWS = 4096

# Rows of one layer, as stored: (n, d).
Stored = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One layer, and the chosen rows in it: int64 (n,), in the order of the first cache's rows.

    `array`: the plain images' layer.
    """

    array: FeatureArray
    rows: NDArray[np.int64]

    def of_view(self, view: int) -> FeatureArray:
        """The layer in one view of the same rows."""
        return self.array.split.layer(self.array.name, view) if view else self.array


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRows:
    """The chosen images of one split, several layers side by side, view after view.

    `columns`: the layers, of one cache or of several (rows/joining.py). `split`: that of the first cache, whose rows
    `chosen` means. `views`: how many views of each image there are, so there are `views` times as many rows. A row is
    `feature_dim` values wide and `row_bytes` long as stored.
    """

    chosen: SplitRows
    columns: tuple[Column, ...]
    split: CachedSplit
    views: int = 1

    @classmethod
    def of(cls, cache: FeatureCache, chosen: SplitRows, layers: tuple[str, ...], views: int = 1) -> FeatureRows:
        """The rows `chosen` of the layers named, in their first `views` views."""
        split = cache[chosen.source]
        columns = tuple(Column(array=split.layer(layer), rows=chosen.rows) for layer in layers)
        return cls(chosen=chosen, columns=columns, split=split, views=views)

    def __len__(self) -> int:
        return self.views * self.images

    @property
    def images(self) -> int:
        """How many images the rows show."""
        return len(self.chosen)

    @property
    def targets(self) -> NDArray[Any]:
        """Targets of all rows: (N,) or (N, C), as `SplitRows.targets` has them."""
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
        """Values a row has over all layers."""
        return sum(int(array.shape[1]) for array in self.arrays)

    @property
    def row_bytes(self) -> int:
        """Bytes a row has over all layers, as stored."""
        return sum(int(array.shape[1]) * array.dtype.itemsize for array in self.arrays)

    @property
    def block_rows(self) -> int:
        """How many rows are read together where all are wanted in their order."""
        return max(1, min(MOST_BLOCK_ROWS, BLOCK_BYTES // (4 * self.feature_dim)))

    def empty(self, count: int) -> list[Stored]:
        """Room for `count` rows: one array (count, d) a layer, as stored."""
        return [np.empty((count, array.shape[1]), array.dtype) for array in self.arrays]

    def read(self, positions: NDArray[np.int64], out: Sequence[Stored]) -> None:
        """Fill `out`, one array (n, d) a layer, with the rows at ascending `positions`.

        Raises HeadError naming rows with NaN or infinity, CacheDamaged for rows that are not those written.
        """
        for view, part in self._parts(positions):
            images = positions[part] - view * self.images if view else positions[part]
            for column, stored in zip(self.columns, out, strict=True):
                array, rows = column.of_view(view), column.rows[images]
                array.gather(rows, out=stored[part])
                _require_finite(array, stored[part], rows)

    def stored(self) -> list[Stored]:
        """All rows: one array (N, d) a layer, as stored. Raises what `read` raises."""
        whole = self.empty(len(self))
        for part in slices(len(self), self.block_rows):
            self.read(np.arange(part.start, part.stop), [one[part] for one in whole])
        return whole

    def values(self) -> NDArray[np.float32]:
        """All rows as values: float32 (N, D). Raises what `read` raises."""
        values = np.empty((len(self), self.feature_dim), np.float32)
        start = 0
        for stored in self._stored_blocks():
            block = values[start : start + len(stored[0])]
            self.fill(block, stored)
            start += len(block)
        return values

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All rows as values, in their order, a block at a time: float32 (n, D). Raises what `read` raises."""
        for stored in self._stored_blocks():
            values = np.empty((len(stored[0]), self.feature_dim), np.float32)
            self.fill(values, stored)
            yield values

    def fill(self, values: NDArray[np.float32], stored: Sequence[Stored]) -> None:
        """Fill `values`, float32 (n, D), with what `stored`, one array (n, d) a layer, stands for."""
        start = 0
        for one, array in zip(stored, self.arrays, strict=True):
            part = values[:, start : start + one.shape[1]]
            part[...] = one
            scale_stored(part, float(array.scale), float(array.offset))
            start += one.shape[1]

    def _stored_blocks(self) -> Iterator[list[Stored]]:
        """All rows as stored, a block at a time; each is written over when the next but one is read."""
        rooms = cycle([self.empty(min(self.block_rows, len(self))) for _ in range(2)])

        def read(part: slice) -> list[Stored]:
            room = [one[: part.stop - part.start] for one in next(rooms)]
            self.read(np.arange(part.start, part.stop), room)
            return room

        yield from read_ahead(read, slices(len(self), self.block_rows))

    def _parts(self, positions: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
        """Which of ascending `positions` lie in which view."""
        ends = np.searchsorted(positions, np.arange(1, self.views + 1) * self.images).tolist()
        for view, (start, end) in enumerate(pairwise([0, *ends])):
            if start < end:
                yield view, slice(start, end)


def choose_layers(cache: FeatureCache, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The layers to read: those asked for, else the only one.

    Raises UnknownName for a layer that the cache has not, InvalidOption where one must be named.
    """
    there = tuple(cache.layers)
    if asked is None:
        if len(there) != 1:
            raise InvalidOption(
                f"{cache.name} holds {len(there)} layers ({', '.join(there)}) and none was named",
                hint=f"--layer {there[0]}, or --concat for all of them" if there else None,
            )
        return there
    for layer in asked:
        if layer not in there:
            raise UnknownName("layer", layer, there)
    return asked


def slices(length: int, step: int) -> Iterator[slice]:
    """`length` things, `step` at a time."""
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
    # Of floats of one sign, the bits as whole numbers rise with the value, and NaN lies beyond infinity. So the
    # largest of a row tells; for float16 this is 20 times as quick as its own maximum. No copy of the rows is made.
    size = values.dtype.itemsize
    wrong = np.zeros(len(values), bool)
    for kind, infinity in ((f"i{size}", np.inf), (f"u{size}", -np.inf)):
        wrong |= values.view(kind).max(axis=1) >= np.array(infinity, values.dtype).view(kind)
    return np.flatnonzero(wrong)
