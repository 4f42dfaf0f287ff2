"""A column of texts, some of them missing, in one buffer: a million cells cost 16 MB plus the bytes of the texts."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

# Texts from JSON may contain lone surrogates.
_ENCODING: Final = ("utf-8", "surrogatepass")
_MISSING: Final = -1
_ROWS_AT_ONCE: Final = 4096


class Cells(Sequence[str | None]):
    """Texts by row, None for a missing one. Each is decoded on access; slices and `take` share the buffer."""

    def __init__(self, text: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
        """`text`: UTF-8; `starts`, `ends`: the byte range of each cell in it, int64 (n,); a start of -1: missing."""
        self._text, self._starts, self._ends = text, starts, ends

    def take(self, rows: npt.NDArray[np.int64]) -> Cells:
        """The cells at `rows` (m,), in that order."""
        return Cells(self._text, self._starts[rows], self._ends[rows])

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> Cells: ...
    def __getitem__(self, index: int | slice) -> str | Cells | None:
        if isinstance(index, slice):
            return Cells(self._text, self._starts[index], self._ends[index])
        return self._cell(int(self._starts[index]), int(self._ends[index]))

    def __iter__(self) -> Iterator[str | None]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            for start, end in zip(self._starts[some].tolist(), self._ends[some].tolist(), strict=True):
                yield self._cell(start, end)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(left == right for left, right in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<Cells: {len(self):,}>"

    def _cell(self, start: int, end: int) -> str | None:
        return None if start == _MISSING else self._text[start:end].decode(*_ENCODING)


class CellsBuilder:
    """Builds a column one cell at a time. `missing`: the number of missing cells to begin with."""

    def __init__(self, missing: int = 0) -> None:
        self._text = bytearray()
        self._starts, self._ends = (array("q", [_MISSING]) * missing for _ in range(2))

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, text: str | None) -> None:
        """Append a cell."""
        start, end = self._place(text)
        self._starts.append(start)
        self._ends.append(end)

    def put(self, row: int, text: str) -> None:
        """Set the text of a row. Rows before it that do not exist yet become missing cells."""
        behind = row + 1 - len(self)
        if behind > 0:
            self._starts.extend([_MISSING] * behind)
            self._ends.extend([_MISSING] * behind)
        self._starts[row], self._ends[row] = self._place(text)

    def cells(self, rows: int | None = None) -> Cells:
        """All cells, in order, padded with missing cells up to `rows`."""
        columns: list[npt.NDArray[Any]] = [np.array(column, np.int64) for column in (self._starts, self._ends)]
        behind = 0 if rows is None else rows - len(self)
        starts, ends = (np.pad(column, (0, behind), constant_values=_MISSING) for column in columns)
        return Cells(bytes(self._text), starts, ends)

    def _place(self, text: str | None) -> tuple[int, int]:
        if text is None:
            return _MISSING, _MISSING
        start = len(self._text)
        self._text += text.encode(*_ENCODING)
        return start, len(self._text)
