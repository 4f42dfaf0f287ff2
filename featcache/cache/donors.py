"""Who has a row already: parts and finished caches alike give away the row of an image, found by its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import DIGEST_BYTES, Checksums, Digests, as_digests
from featcache.cache.rows import Rows
from featcache.errors import CacheDamaged, CacheIncomplete

# Small enough for memory to stay flat, large enough for a call to be worth it.
_ROWS_AT_ONCE = 512


class Donor(Protocol):
    """Whoever has rows: a part, or one split of a finished cache."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the spec the rows were computed under."""

    @property
    def digests(self) -> Digests:
        """The SHA-256 of the image behind each row: uint8 (n, 32)."""

    def gather(self, layer: str, rows: Rows) -> npt.NDArray[Any]:
        """(len(rows), D) in the stored dtype; CacheDamaged where one does not match its checksum."""

    def checksums(self, layer: str, rows: Rows) -> Checksums:
        """The stored xxh3 of these rows: (len(rows),) uint64."""

    def intact(self, layer: str, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (len(rows),) bool."""


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
        self._digests = np.concatenate([np.empty((0, DIGEST_BYTES), np.uint8), *tables])
        self._first = np.cumsum([0, *map(len, tables)])

    def __len__(self) -> int:
        return len(self.donors)

    def locate(self, digests: Digests, layers: Sequence[str] = ()) -> Located:
        """Where the rows of these images are: (n, 32) uint8 -> n places, -1 where nobody has one.

        With `layers`, every row found is read, and one that does not match its checksum in any of them does not
        count; another donor's is taken instead.
        """
        wanted = as_digests(digests)
        usable = np.ones(len(self._digests), np.bool_)
        while True:
            place = _find(self._digests, usable, wanted)
            located = self._located(place)
            bad = self._damaged(located, layers)
            if not bad.any():
                return located
            usable[place[bad]] = False

    def gather(self, layer: str, located: Located) -> npt.NDArray[Any]:
        """The rows: (n, D) in the stored dtype. Raises CacheIncomplete where nobody has one, CacheDamaged."""
        out: npt.NDArray[Any] | None = None
        for donor, places in self._by_donor(located):
            rows = donor.gather(layer, located.row[places])
            if len(rows) == len(located.row):
                return rows
            if out is None:
                out = np.empty((len(located.row), *rows.shape[1:]), rows.dtype)
            out[places] = rows
        if out is None:
            raise CacheIncomplete("no rows were asked for, or no donor has any")
        return out

    def checksums(self, layer: str, located: Located) -> Checksums:
        """The rows' stored xxh3: (n,) uint64."""
        sums = np.zeros(len(located.row), np.uint64)
        for donor, places in self._by_donor(located):
            sums[places] = donor.checksums(layer, located.row[places])
        return sums

    def _by_donor(self, located: Located) -> Iterator[tuple[Donor, npt.NDArray[np.int64]]]:
        missing = int((located.donor < 0).sum())
        if missing:
            raise CacheIncomplete(
                f"nobody has {missing} of {len(located.row)} rows",
                hint="run the same extraction again: it computes what is missing",
            )
        return self._groups(located.donor)

    def _groups(self, donor: npt.NDArray[np.int32]) -> Iterator[tuple[Donor, npt.NDArray[np.int64]]]:
        """Each donor with the places it has something for, in order; what nobody has is left out."""
        order = np.argsort(donor, kind="stable")
        numbers, first = np.unique(donor[order], return_index=True)
        if not len(numbers):
            return
        for number, places in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            if number >= 0:
                yield self.donors[number], places

    def _located(self, place: npt.NDArray[np.int64]) -> Located:
        donor = np.searchsorted(self._first, place, side="right") - 1
        donor[place < 0] = -1
        row = np.where(place < 0, -1, place - self._first[donor])
        return Located(donor.astype(np.int32), row.astype(np.int64))

    def _damaged(self, located: Located, layers: Sequence[str]) -> npt.NDArray[np.bool_]:
        bad = np.zeros(len(located.row), np.bool_)
        if not layers:
            return bad
        for donor, places in self._groups(located.donor):
            for start in range(0, len(places), _ROWS_AT_ONCE):
                some = places[start : start + _ROWS_AT_ONCE]
                for layer in layers:
                    bad[some] |= ~donor.intact(layer, located.row[some])
        return bad


def _digests_of(donor: Donor, report: Callable[[str], None] | None) -> Digests:
    try:
        return donor.digests
    except CacheDamaged as error:
        if report is None:
            raise
        report(f"{error.message}; none of its rows count")
        return np.empty((0, DIGEST_BYTES), np.uint8)


def _find(digests: Digests, usable: npt.NDArray[np.bool_], wanted: Digests) -> npt.NDArray[np.int64]:
    """For each wanted digest the first usable place that has it, else -1."""
    places = np.flatnonzero(usable)
    have, want = (np.ascontiguousarray(table).view("<u8") for table in (digests[places], wanted))
    # Eight bytes of a SHA-256 tell nearly all apart; the rest is compared afterwards.
    order = np.argsort(have[:, 0], kind="stable")
    keys = have[order, 0]
    found = np.full(len(want), -1, np.int64)
    open_ = np.argsort(want[:, 0])
    at = np.searchsorted(keys, want[open_, 0])
    while len(open_):
        alive = at < len(keys)
        alive[alive] = keys[at[alive]] == want[open_[alive], 0]
        open_, at = open_[alive], at[alive]
        same = (have[order[at]] == want[open_]).all(axis=1)
        found[open_[same]] = places[order[at[same]]]
        open_, at = open_[~same], at[~same] + 1
    return found
