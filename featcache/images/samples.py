"""The samples (images) of a data set: `Samples` of one split, `SampleRows` of several.

Ids and labels are stored as columns, so that ten million need little more memory than their names.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

UNLABELLED = -1
"""The label of a sample whose class is unknown."""
_ROWS_AT_ONCE = 4096
_ENCODING = ("utf-8", "surrogatepass")
# The first byte of a surrogate, which occurs only in names that are not valid UTF-8 (and in some Korean letters).
_SURROGATE = b"\xed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image of a source.

    Attributes:
        id: Stable: the POSIX path inside the set without wrapper folders ("train/airplane/0001.jpg"), or split and
            number ("train/00012").
        split: `train`, `val` or `test`.
        label: An index into the source's `classes`; -1: unlabelled.
    """

    id: str
    split: str
    label: int


class Samples(Sequence[Sample]):
    """The samples of one split, stored as columns. Each sample is created on access; slices share the columns.

    Needs about 20 bytes per sample plus the bytes of its id; objects would need 150.
    """

    def __init__(
        self,
        split: str,
        text: bytes | bytearray,
        ends: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        rows: Any = None,
    ) -> None:
        """`text`: all ids concatenated, in UTF-8; `ends`: where each begins, and the end, int64 (n + 1,).

        `labels`: int64 (n,); `rows`: which of these the object contains, in order, int64 (m,); None: all.
        """
        self.split = split
        self._text, self._ends, self._labels, self._rows = text, ends, labels, rows

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Indices into the source's classes, -1: unlabelled; int64 (n,)."""
        return self._labels if self._rows is None else self._labels[self._rows]

    def ids(self) -> Iterator[str]:
        """The ids, in order."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = self._numbers(slice(start, start + _ROWS_AT_ONCE))
            for begin, end in zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True):
                yield self._text[begin:end].decode(*_ENCODING)

    def to_utf8(self) -> npt.NDArray[np.bytes_] | None:
        """The ids as fixed-length UTF-8, (n,); None if a name cannot be encoded as UTF-8."""
        if _SURROGATE in self._text:
            return None
        text = np.frombuffer(self._text, np.uint8)
        rows = slice(None) if self._rows is None else self._rows
        starts, ends = self._ends[:-1][rows], self._ends[1:][rows]
        lengths = ends - starts
        width = max(1, int(lengths.max(initial=1)))
        encoded = np.zeros((len(starts), width), np.uint8)
        columns = np.arange(width)
        for first in range(0, len(starts), _ROWS_AT_ONCE):
            some = slice(first, first + _ROWS_AT_ONCE)
            there = columns < lengths[some, None]
            places = (starts[some, None] + columns).clip(max=max(0, len(text) - 1))
            encoded[some] = np.where(there, text[places], 0) if len(text) else 0
        return encoded.view(f"|S{width}")[:, 0]

    @classmethod
    def of(cls, split: str, samples: Iterable[Sample]) -> Samples:
        """Store samples as columns."""
        if isinstance(samples, Samples):
            return samples
        columns = SampleColumns(split)
        for sample in samples:
            columns.append(sample.id, sample.label)
        return columns.samples()

    def take(self, rows: npt.NDArray[np.int64]) -> Samples:
        """The samples at `rows`, int64 (m,), in that order."""
        return Samples(self.split, self._text, self._ends, self._labels, self._numbers(rows))

    @property
    def rows_in_listing(self) -> npt.NDArray[np.int64]:
        """The row of each sample in the original listing, int64 (n,): it indexes columns that belong to the listing."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def renumber_labels(self, numbers: npt.NDArray[np.int64]) -> Samples:
        """Replace each label by `numbers[label]`; unlabelled samples stay unlabelled."""
        labels = np.append(numbers, -1)[self._labels]
        return Samples(self.split, self._text, self._ends, labels, self._rows)

    def move_to_split(self, split: str) -> Samples:
        """The same samples, assigned to another split."""
        return Samples(split, self._text, self._ends, self._labels, self._rows)

    def without_labels(self) -> Samples:
        """The same samples, all unlabelled."""
        return Samples(self.split, self._text, self._ends, np.full_like(self._labels, -1), self._rows)

    def find(self, sample_id: str) -> int:
        """The index of an id; the samples must be sorted by id. Raises KeyError if it is missing."""
        # UTF-8 sorts like code points, so nothing needs to be decoded.
        encoded = sample_id.encode(*_ENCODING)
        place = bisect.bisect_left(range(len(self)), encoded, key=self._id_bytes)
        if place == len(self) or self._id_bytes(place) != encoded:
            raise KeyError(sample_id)
        return place

    def _id_bytes(self, place: int) -> bytes:
        row = place if self._rows is None else int(self._rows[place])
        return bytes(self._text[int(self._ends[row]) : int(self._ends[row + 1])])

    def sort_by_id(self) -> Samples:
        """The same samples in the order of their ids (code points)."""
        if all(before < after for before, after in itertools.pairwise(self.ids())):
            return self
        ids = list(self.ids())
        # By id, then label: duplicates are neighbours.
        order = sorted(range(len(ids)), key=lambda row: (ids[row], self._labels[row]))
        return self.take(np.array(order, np.int64))

    def __len__(self) -> int:
        return len(self._labels) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = index % len(self) if self._rows is None else int(self._rows[index])
        text = self._text[int(self._ends[row]) : int(self._ends[row + 1])]
        return Sample(id=text.decode(*_ENCODING), split=self.split, label=int(self._labels[row]))

    def __iter__(self) -> Iterator[Sample]:
        for sample_id, label in zip(self.ids(), _numbers_of(self.labels), strict=True):
            yield Sample(id=sample_id, split=self.split, label=label)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(left == right for left, right in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<Samples {self.split}: {len(self):,}>"

    def _numbers(self, index: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._rows is not None:
            rows: npt.NDArray[np.int64] = self._rows[index]
            return rows
        return np.arange(*index.indices(len(self))) if isinstance(index, slice) else index


def _numbers_of(labels: npt.NDArray[np.int64]) -> Iterator[int]:
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        yield from labels[start : start + _ROWS_AT_ONCE].tolist()


class SampleColumns:
    """Builds the samples of one split, one at a time."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._text, self._ends, self._labels = bytearray(), array("q", [0]), array("q")

    def __len__(self) -> int:
        return len(self._labels)

    def append(self, sample_id: str, label: int) -> None:
        """Append a sample."""
        self._text += sample_id.encode(*_ENCODING)
        self._ends.append(len(self._text))
        self._labels.append(label)

    def samples(self) -> Samples:
        """All samples, in order. Nothing can be appended afterwards."""
        # Shares the buffers instead of copying them: the copies of ten million names would need 400 MB.
        ends = np.frombuffer(self._ends, np.int64)
        labels = np.frombuffer(self._labels, np.int64) if len(self._labels) else np.empty(0, np.int64)
        return Samples(self._split, self._text, ends, labels)


class SampleIds(Sequence[str]):
    """The ids of samples, each decoded on access."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> SampleIds: ...
    def __getitem__(self, index: int | slice) -> str | SampleIds:
        return SampleIds(self._samples[index]) if isinstance(index, slice) else self._samples[index].id

    def __iter__(self) -> Iterator[str]:
        return self._samples.ids()

    def to_utf8(self) -> npt.NDArray[np.bytes_] | None:
        """All ids as fixed-length UTF-8, (n,); None if a name cannot be encoded as UTF-8."""
        return self._samples.to_utf8()


class SampleRows(Sequence[Sample]):
    """Samples of several splits, concatenated; each may occur any number of times, and is created on access."""

    def __init__(self, splits: Sequence[Samples], rows: npt.NDArray[np.int64] | None = None) -> None:
        """`rows`: indices into the concatenated samples of all `splits`, int64 (n,); None: all, in order."""
        self.splits = tuple(splits)
        self._starts = np.cumsum([0, *map(len, self.splits)])
        self._rows = rows

    def take(self, index: npt.NDArray[Any] | slice) -> SampleRows:
        """The samples at `index`: indices, a boolean mask or a slice."""
        return SampleRows(self.splits, self._numbers(index))

    def by_split(self) -> dict[str, Samples]:
        """The samples of each split, in their order; a split without samples is left out."""
        if self._rows is None:
            return {samples.split: samples for samples in self.splits if len(samples)}
        holder = self._holder(self._rows)
        return {
            samples.split: samples.take(self._rows[holder == number] - self._starts[number])
            for number, samples in enumerate(self.splits)
            if (holder == number).any()
        }

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleRows: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleRows:
        if isinstance(index, slice):
            return self.take(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = index % len(self) if self._rows is None else self._rows[index]
        holder = int(self._holder(row))
        return self.splits[holder][int(row - self._starts[holder])]

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = self._numbers(slice(start, start + _ROWS_AT_ONCE))
            holder = self._holder(rows)
            ends = [*(np.flatnonzero(np.diff(holder)) + 1).tolist(), len(rows)]
            for begin, end in itertools.pairwise([0, *ends]):
                number = int(holder[begin])
                yield from self.splits[number].take(rows[begin:end] - self._starts[number])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(left == right for left, right in zip(self, other, strict=True))

    def _numbers(self, index: npt.NDArray[Any] | slice) -> npt.NDArray[np.int64]:
        """The rows at `index`. They are not stored if they are all rows: for ten million samples they need 80 MB."""
        numbers: npt.NDArray[np.int64]
        if self._rows is not None:
            numbers = self._rows[index]
        elif isinstance(index, slice):
            numbers = np.arange(*index.indices(len(self)))
        else:
            numbers = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return numbers

    def _holder(self, rows: Any) -> Any:
        return np.searchsorted(self._starts, rows, side="right") - 1
