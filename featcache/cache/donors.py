"""Which rows there are already: segments and packed caches alike give the row of an image, found by its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import DIGEST_BYTES, Checksums, Digests, as_digests, leading_numbers, row_checksums
from featcache.cache.rows import Rows
from featcache.errors import CacheDamaged, CacheIncomplete

# Small enough for memory to stay flat, large enough for a call to be worth it.
_ROWS_AT_ONCE = 512
_LOOKED_UP_AT_ONCE = 1 << 14
_NO_DIGESTS: Digests = np.empty((0, DIGEST_BYTES), np.uint8)


class Donor(Protocol):
    """What has rows: one split of a cache or of a segment."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the spec the rows were computed under."""

    @property
    def digests(self) -> Digests:
        """The SHA-256 of the image behind each row: uint8 (n, 32)."""

    @property
    def views(self) -> int:
        """How many views of each image it has, the plain one among them."""

    def gather(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[Any]:
        """(len(rows), D) in the stored dtype; CacheDamaged where one does not match its checksum."""

    def checksums(self, layer: str, rows: Rows, view: int = 0) -> Checksums:
        """The stored xxh3 of these rows: (len(rows),) uint64."""

    def intact(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (len(rows),) bool."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryDonor:
    """Rows that were computed and are not on disk yet.

    Args:
        fingerprint: Of the spec they were computed under.
        digests: uint8 (n, 32), the SHA-256 of the image behind each row.
        features: {layer: (n, D)} as they are stored, of the plain images.
        augmented: The same of each further view.
    """

    fingerprint: str
    digests: Digests
    features: Mapping[str, npt.NDArray[Any]]
    augmented: Sequence[Mapping[str, npt.NDArray[Any]]] = ()

    @property
    def views(self) -> int:
        return 1 + len(self.augmented)

    def gather(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[Any]:
        """(len(rows), D) in the stored dtype."""
        found: npt.NDArray[Any] = (self.features, *self.augmented)[view][layer][rows]
        return found

    def checksums(self, layer: str, rows: Rows, view: int = 0) -> Checksums:
        """The xxh3 of these rows: (len(rows),) uint64."""
        return row_checksums(self.gather(layer, rows, view))

    def intact(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[np.bool_]:
        """All of them."""
        return np.full(len(rows), layer in self.features)


class Located(NamedTuple):
    """Where rows were found: the number of the donor (int32, -1: nowhere) and the row in it (int64)."""

    donor: npt.NDArray[np.int32]
    row: Rows

    def take(self, which: slice | npt.NDArray[Any]) -> Located:
        """Some of the places: a slice, a mask or an index."""
        return Located(self.donor[which], self.row[which])


class Donors:
    """Finds and gathers rows over many donors, by digest; of several that have a row, the first one gives it.

    A donor whose digests are damaged has no rows, if there is a `report` to be told so; else CacheDamaged is raised.
    """

    def __init__(self, donors: Sequence[Donor], report: Callable[[str], None] | None = None) -> None:
        self.donors = tuple(donors)
        tables = [_digests_of(donor, report) for donor in self.donors]
        # Of ten million rows a copy is 320 MB.
        self._digests = tables[0] if len(tables) == 1 else np.concatenate([_NO_DIGESTS, *tables])
        self._first = np.cumsum([0, *map(len, tables)])
        counts = np.array(list(map(len, tables)), np.int64)
        self._views = np.repeat(np.array([donor.views for donor in self.donors], np.int64), counts)

    def __len__(self) -> int:
        return len(self.donors)

    def locate(self, digests: Digests, layers: Sequence[str] = (), view: int = 0) -> Located:
        """Where the rows of one view of these images are: (n, 32) uint8 -> n places, -1 where none has one.

        With `layers`, every row found is read, and one that does not match its checksum in any of them does not
        count; another donor's is taken instead.
        """
        wanted = as_digests(digests)
        usable = self._views > view
        while True:
            place = self._places(wanted, usable)
            located = self._located(place)
            bad = self._damaged(located, layers, view)
            if not bad.any():
                return located
            usable[place[bad]] = False

    def gather(self, layer: str, located: Located, view: int = 0) -> npt.NDArray[Any]:
        """The rows of one view: (n, D) in the stored dtype. Raises CacheIncomplete where none has one, CacheDamaged."""
        out: npt.NDArray[Any] | None = None
        for donor, places in self._by_donor(located):
            rows = donor.gather(layer, located.row[places], view)
            if len(rows) == len(located.row):
                return rows
            if out is None:
                out = np.empty((len(located.row), *rows.shape[1:]), rows.dtype)
            out[places] = rows
        if out is None:
            raise CacheIncomplete("no rows were asked for, or no donor has any")
        return out

    def checksums(self, layer: str, located: Located, view: int = 0) -> Checksums:
        """The rows' stored xxh3: (n,) uint64."""
        sums = np.zeros(len(located.row), np.uint64)
        for donor, places in self._by_donor(located):
            sums[places] = donor.checksums(layer, located.row[places], view)
        return sums

    def _by_donor(self, located: Located) -> Iterator[tuple[Donor, npt.NDArray[np.int64]]]:
        missing = int((located.donor < 0).sum())
        if missing:
            raise CacheIncomplete(
                f"no cache has {missing} of {len(located.row)} rows",
                hint="run the same extraction again: it computes what is missing",
            )
        return self._groups(located.donor)

    def _groups(self, donor: npt.NDArray[np.int32]) -> Iterator[tuple[Donor, npt.NDArray[np.int64]]]:
        """Each donor with the places it has something for, in order; what none has is left out."""
        order = np.argsort(donor, kind="stable")
        numbers, first = np.unique(donor[order], return_index=True)
        if not len(numbers):
            return
        for number, places in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            if number >= 0:
                yield self.donors[number], places

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Places in the order of the first eight bytes of their digests, and those as numbers: (n,) each."""
        keys = leading_numbers(self._digests)
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    def _places(self, wanted: Digests, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """For each wanted digest the first usable place that has it, else -1."""
        found = np.full(len(wanted), -1, np.int64)
        if len(self._digests):
            # A piece at a time: both whole digests of all that is found would stand beside each other.
            for start in range(0, len(wanted), _LOOKED_UP_AT_ONCE):
                some = slice(start, start + _LOOKED_UP_AT_ONCE)
                found[some] = self._places_of_some(wanted[some], usable)
        return found

    def _places_of_some(self, wanted: Digests, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        order, keys = self._sorted
        asked = leading_numbers(wanted)
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.argsort(asked)
        at = np.searchsorted(keys, asked[open_])
        # Eight bytes of a SHA-256 tell nearly all apart; those that are equal are compared whole, one after the other.
        while len(open_):
            alike = at < len(keys)
            alike[alike] = keys[at[alike]] == asked[open_[alike]]
            open_, at = open_[alike], at[alike]
            same = usable[order[at]] & (self._digests[order[at]] == wanted[open_]).all(axis=1)
            found[open_[same]] = order[at[same]]
            open_, at = open_[~same], at[~same] + 1
        return found

    def _located(self, place: npt.NDArray[np.int64]) -> Located:
        donor = (np.searchsorted(self._first, place, side="right") - 1).astype(np.int32)
        donor[place < 0] = -1
        return Located(donor, np.where(place < 0, -1, place - self._first[donor]))

    def _damaged(self, located: Located, layers: Sequence[str], view: int) -> npt.NDArray[np.bool_]:
        bad = np.zeros(len(located.row), np.bool_)
        if not layers:
            return bad
        for donor, places in self._groups(located.donor):
            for start in range(0, len(places), _ROWS_AT_ONCE):
                some = places[start : start + _ROWS_AT_ONCE]
                for layer in layers:
                    bad[some] |= ~donor.intact(layer, located.row[some], view)
        return bad


def _digests_of(donor: Donor, report: Callable[[str], None] | None) -> Digests:
    try:
        return donor.digests
    except CacheDamaged as error:
        if report is None:
            raise
        report(f"{error.message}; none of its rows count")
        return _NO_DIGESTS
