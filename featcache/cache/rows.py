"""Read rows of a stored array by offset: in any order, also repeated; neighbours are read in one call."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InvalidOption
from featcache.files import ReadableFile

Rows = npt.NDArray[np.int64]
_ONE: Rows = np.zeros(1, np.int64)


def as_rows(index: Any, count: int) -> Rows:
    """Convert a NumPy index along one axis to row numbers.

    Args:
        index: Integers (negative ones count from the end), a boolean mask (count,) or a slice.
        count: The number of rows.

    Returns:
        int64 (n,), each from 0 to `count` - 1.

    Raises:
        IndexError: A row is out of range, or the index is of another kind.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(count), dtype=np.int64)
    given = np.asarray(index)
    if given.ndim != 1:
        raise IndexError(f"expected one axis of row numbers, got an index of shape {given.shape}")
    if given.dtype == np.bool_:
        if len(given) != count:
            raise IndexError(f"expected a mask of {count} rows, got {len(given)}")
        return np.flatnonzero(given)
    if given.dtype.kind not in "iu" and given.size:
        raise IndexError(f"expected integers as row numbers, got {given.dtype}")
    rows = given.astype(np.int64, copy=False)
    if not rows.size:
        return rows
    low, high = int(rows.min()), int(rows.max())
    if low < -count or high >= count:
        raise IndexError(f"row {high if high >= count else low} is out of range for {count} rows")
    return rows + np.where(rows < 0, count, 0) if low < 0 else rows


def read_rows(
    file: ReadableFile, offset: int, rows: Rows, shape: tuple[int, ...], dtype: str, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Read rows of the array that begins at `offset`.

    Args:
        file: The file.
        offset: The first byte of the array.
        rows: int64 (n,), the numbers of the rows.
        shape, dtype: Those of one row.
        out: Filled and returned, if given: C-contiguous (n, *shape) of that dtype.

    Returns:
        (n, *shape) in the stored dtype, in the order of `rows`.

    Raises:
        CacheDamaged: The file ends too early.
        InvalidOption: `out` does not fit.
    """
    return read_rows_of([(file, offset)], _ONE, rows, shape, dtype, out)


def read_rows_of(
    files: Sequence[tuple[ReadableFile, int]],
    starts: Rows,
    rows: Rows,
    shape: tuple[int, ...],
    dtype: str,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """The same for an array that is stored in several files, one after the other.

    Args:
        files: Each with the offset of its first row, in bytes.
        starts: The number of each file's first row: (files,), ascending.
        rows, shape, dtype, out: As `read_rows` takes them.
    """
    wanted = (len(rows), *shape)
    if out is None:
        out = np.empty(wanted, dtype)
    elif out.shape != wanted or out.dtype != np.dtype(dtype) or not out.flags.c_contiguous:
        raise InvalidOption(
            f"out: expected C-contiguous {dtype} {wanted}, got {out.dtype.str} {out.shape}",
            hint="pass an array of that shape and dtype, or None",
        )
    if out.nbytes:
        _fill(files, starts, rows, out.reshape(-1).view(np.uint8).data, out.nbytes // len(rows))
    return out


def read_array(file: ReadableFile, offset: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Read the whole array that begins at `offset`. Raises CacheDamaged where the file ends too early."""
    array = np.empty(shape, dtype)
    if array.nbytes:
        file.read_into([array.reshape(-1).view(np.uint8).data], offset)
    return array


def _fill(
    files: Sequence[tuple[ReadableFile, int]], starts: Rows, rows: Rows, view: memoryview, row_bytes: int
) -> None:
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    holder = np.searchsorted(starts, ascending, side="right") - 1
    # A run is what one call reads: rows that follow each other in a file and in the output.
    together = (np.diff(ascending) == 1) & (np.diff(order) == 1) & (np.diff(holder) == 0)
    first = np.flatnonzero(np.concatenate(([True], ~together)))
    length = np.diff(np.append(first, len(rows)))
    begin = order[first] * row_bytes
    end = begin + length * row_bytes
    buffers = [view[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]
    holder = holder[first]
    inside = (ascending[first] - starts[holder]) * row_bytes
    change = [0, *(np.flatnonzero(np.diff(holder)) + 1).tolist(), len(holder)]
    for a, b in itertools.pairwise(change):
        file, offset = files[holder[a]]
        file.read_each(buffers[a:b], (inside[a:b] + offset).tolist())
