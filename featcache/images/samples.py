"""One image of a set, and many of them kept as columns, so that ten million cost what their names take."""

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
"""The label of a sample whose class is not known."""
_ROWS_AT_ONCE = 4096
_ENCODING = ("utf-8", "surrogatepass")
# With this byte a surrogate begins, which only names have that are no UTF-8 (and some Korean letters).
_SURROGATE = b"\xed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image of a source.

    `id` is stable: the POSIX path inside the set without a wrapping folder ("train/airplane/0001.jpg"), or
    split and number ("train/00012"). `label` indexes the source's `classes`; -1: unlabelled.
    """

    id: str
    split: str
    label: int


class Samples(Sequence[Sample]):
    """Samples of one split. Each is made when it is asked for; slices share the columns.

    About 20 bytes a sample beside its id's own, where objects take 150.
    """

    def __init__(
        self,
        split: str,
        text: bytes | bytearray,
        ends: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        rows: Any = None,
    ) -> None:
        """`text`: all ids one after the other in UTF-8; `ends` (n + 1,): where each begins, and the end.

        `labels` int64 (n,); `rows`: which of these it holds, in order, int64 (m,); None: all.
        """
        self.split = split
        self._text, self._ends, self._labels, self._rows = text, ends, labels, rows

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) indices into the source's classes, -1: unlabelled."""
        return self._labels if self._rows is None else self._labels[self._rows]

    def ids(self) -> Iterator[str]:
        """The ids, in order."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = self._numbers(slice(start, start + _ROWS_AT_ONCE))
            for begin, end in zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True):
                yield self._text[begin:end].decode(*_ENCODING)

    def encoded_ids(self) -> npt.NDArray[np.bytes_] | None:
        """The ids as UTF-8 of fixed length: (n,); None where a name is no text that UTF-8 can hold."""
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
        """The same samples as columns."""
        if isinstance(samples, Samples):
            return samples
        columns = SampleColumns(split)
        for sample in samples:
            columns.append(sample.id, sample.label)
        return columns.samples()

    def take(self, rows: npt.NDArray[np.int64]) -> Samples:
        """Those at `rows` (m,), in that order."""
        return Samples(self.split, self._text, self._ends, self._labels, self._numbers(rows))

    @property
    def listed_rows(self) -> npt.NDArray[np.int64]:
        """(n,) which of the samples that were listed each one is: what stands in columns beside them is found by it."""
        return np.arange(len(self)) if self._rows is None else self._rows

    def relabelled(self, numbers: npt.NDArray[np.int64]) -> Samples:
        """The same with label `numbers[label]` in place of each label; unlabelled ones stay so."""
        labels = np.append(numbers, -1)[self._labels]
        return Samples(self.split, self._text, self._ends, labels, self._rows)

    def in_split(self, split: str) -> Samples:
        """The same as samples of that split."""
        return Samples(split, self._text, self._ends, self._labels, self._rows)

    def unlabelled(self) -> Samples:
        """The same without labels."""
        return Samples(self.split, self._text, self._ends, np.full_like(self._labels, -1), self._rows)

    def find(self, sample_id: str) -> int:
        """The place of that id among samples sorted by id. KeyError where it is not there."""
        # UTF-8 is ordered as code points are, so nothing need be decoded.
        wanted = sample_id.encode(*_ENCODING)
        place = bisect.bisect_left(range(len(self)), wanted, key=self._encoded)
        if place == len(self) or self._encoded(place) != wanted:
            raise KeyError(sample_id)
        return place

    def _encoded(self, place: int) -> bytes:
        row = place if self._rows is None else int(self._rows[place])
        return bytes(self._text[int(self._ends[row]) : int(self._ends[row + 1])])

    def sorted_by_id(self) -> Samples:
        """The same in the order of their ids (code points)."""
        if all(before < after for before, after in itertools.pairwise(self.ids())):
            return self
        ids = list(self.ids())
        # By id, then label: what is listed twice is found beside itself.
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
        for one, label in zip(self.ids(), _numbers_of(self.labels), strict=True):
            yield Sample(id=one, split=self.split, label=label)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

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
    """Samples of one split as they are listed, one at a time."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._text, self._ends, self._labels = bytearray(), array("q", [0]), array("q")

    def __len__(self) -> int:
        return len(self._labels)

    def append(self, sample_id: str, label: int) -> None:
        """One more."""
        self._text += sample_id.encode(*_ENCODING)
        self._ends.append(len(self._text))
        self._labels.append(label)

    def samples(self) -> Samples:
        """All of them, in that order; the last call."""
        # No copies: of ten million names they would be 400 MB. Nothing can be appended afterwards.
        ends = np.frombuffer(self._ends, np.int64)
        labels = np.frombuffer(self._labels, np.int64) if len(self._labels) else np.empty(0, np.int64)
        return Samples(self._split, self._text, ends, labels)


class SampleIds(Sequence[str]):
    """The ids of samples, each decoded when it is asked for."""

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

    def encoded(self) -> npt.NDArray[np.bytes_] | None:
        """All of them as UTF-8 of fixed length: (N,); None where a name is no text that UTF-8 can hold."""
        return self._samples.encoded_ids()


class SampleRows(Sequence[Sample]):
    """Samples of several splits one after the other, any of them any number of times, made when they are asked for."""

    def __init__(self, splits: Sequence[Samples], rows: npt.NDArray[np.int64] | None = None) -> None:
        """`rows` (n,): numbers among the samples of all `splits`, in order; None: all."""
        self.splits = tuple(splits)
        self._starts = np.cumsum([0, *map(len, self.splits)])
        self._rows = rows

    def take(self, index: npt.NDArray[Any] | slice) -> SampleRows:
        """Those at `index`: numbers, a mask or a slice."""
        return SampleRows(self.splits, self._numbers(index))

    def by_split(self) -> dict[str, Samples]:
        """Those of each split, in their order; a split without any is left out."""
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
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def _numbers(self, index: npt.NDArray[Any] | slice) -> npt.NDArray[np.int64]:
        """The numbers at `index`. All of ten million samples would be 80 MB of numbers that say nothing."""
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
