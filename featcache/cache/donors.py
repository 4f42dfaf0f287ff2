"""Reuse rows that were computed before: donors (segments, packed caches, memory) give the row of an image.

An image is found by the SHA-256 of its bytes.
"""

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

# Few enough rows to keep memory low, and enough to keep the cost of calls low.
_ROWS_AT_ONCE = 512
_LOOKED_UP_AT_ONCE = 1 << 14
_NO_DIGESTS: Digests = np.empty((0, DIGEST_BYTES), np.uint8)


class Donor(Protocol):
    """Rows that were computed before and can be copied into a cache.

    They are a split of a cache or of a segment, or rows in memory.
    """

    @property
    def fingerprint(self) -> str:
        """The hash of the options that determine the rows' values (`Spec.fingerprint`)."""

    @property
    def digests(self) -> Digests:
        """The SHA-256 of the image behind each row: uint8 (n, 32)."""

    @property
    def views(self) -> int:
        """The number of views of each image, the plain one included."""

    def gather(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[Any]:
        """(len(rows), D) in the stored dtype. Raises CacheDamaged where a row does not match its checksum."""

    def checksums(self, layer: str, rows: Rows, view: int = 0) -> Checksums:
        """The stored xxh3 of these rows: (len(rows),) uint64."""

    def intact(self, layer: str, rows: Rows, view: int = 0) -> npt.NDArray[np.bool_]:
        """Which of these rows match their checksum: (len(rows),) bool."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryDonor:
    """Rows in memory that are not on disk yet.

    Args:
        fingerprint: The fingerprint of their spec.
        digests: uint8 (n, 32), the SHA-256 of the image behind each row.
        features: {layer: (n, D)} in the stored dtype, of the plain images.
        augmented: The same for each further view.
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
        """True for every row of a layer it has: (len(rows),) bool."""
        return np.full(len(rows), layer in self.features)


class Located(NamedTuple):
    """Where rows were found: for each the number of the donor (int32, -1: none has it) and the row in it (int64)."""

    donor: npt.NDArray[np.int32]
    row: Rows

    def take(self, which: slice | npt.NDArray[Any]) -> Located:
        """Some of the places: a slice, a mask or an index."""
        return Located(self.donor[which], self.row[which])


class Donors:
    """Find and gather rows over many donors, by digest. Of several donors that have a row, the first is used.

    Args:
        donors: The donors.
        report: Called with a message for each donor whose digests are damaged; its rows are not used.

    Raises:
        CacheDamaged: The digests of a donor are damaged, and there is no `report`.
    """

    def __init__(self, donors: Sequence[Donor], report: Callable[[str], None] | None = None) -> None:
        self.donors = tuple(donors)
        tables = [_digests_of(donor, report) for donor in self.donors]
        # For ten million rows a copy takes 320 MB.
        self._digests = tables[0] if len(tables) == 1 else np.concatenate([_NO_DIGESTS, *tables])
        self._first = np.cumsum([0, *map(len, tables)])
        counts = np.array(list(map(len, tables)), np.int64)
        self._views = np.repeat(np.array([donor.views for donor in self.donors], np.int64), counts)

    def __len__(self) -> int:
        return len(self.donors)

    def locate(self, digests: Digests, layers: Sequence[str] = (), view: int = 0) -> Located:
        """Find the rows of one view of images.

        Args:
            digests: uint8 (n, 32), the SHA-256 of each image.
            layers: Layers in which every row found is read and checked; a row that does not match its checksum is
                not used, and another donor's row is taken instead.
            view: 0 for the plain images.

        Returns:
            n places; -1 where no donor has the row.
        """
        wanted = as_digests(digests)
        usable = self._views > view
        while True:
            place = self._places(wanted, usable)
            located = self._as_located(place)
            bad = self._find_damaged(located, layers, view)
            if not bad.any():
                return located
            usable[place[bad]] = False

    def gather(self, layer: str, located: Located, view: int = 0) -> npt.NDArray[Any]:
        """Read the rows of one view.

        Args:
            layer: A layer's name.
            located: Where the rows are, (n,) as `locate` returns it.
            view: 0 for the plain images.

        Returns:
            (n, D) in the stored dtype.

        Raises:
            CacheIncomplete: No donor has one of the rows.
            CacheDamaged: A row does not match its checksum.
        """
        out: npt.NDArray[Any] | None = None
        for donor, places in self._by_donor(located):
            rows = donor.gather(layer, located.row[places], view)
            if len(rows) == len(located.row):
                return rows
            if out is None:
                out = np.empty((len(located.row), *rows.shape[1:]), rows.dtype)
            out[places] = rows
        if out is None:
            raise CacheIncomplete("no rows were requested, or no donor has any")
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
        """Each donor with the places of the rows it gives, in order; places that no donor has are left out."""
        order = np.argsort(donor, kind="stable")
        numbers, first = np.unique(donor[order], return_index=True)
        if not len(numbers):
            return
        for number, places in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
            if number >= 0:
                yield self.donors[number], places

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """The places sorted by the first eight bytes of their digests, and these bytes as numbers: (n,) each."""
        keys = leading_numbers(self._digests)
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    def _places(self, wanted: Digests, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """For each wanted digest the first usable place that has it, or -1."""
        found = np.full(len(wanted), -1, np.int64)
        if len(self._digests):
            # In pieces: the full digests of both sides of all matches would be in memory together.
            for start in range(0, len(wanted), _LOOKED_UP_AT_ONCE):
                some = slice(start, start + _LOOKED_UP_AT_ONCE)
                found[some] = self._places_of_some(wanted[some], usable)
        return found

    def _places_of_some(self, wanted: Digests, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        order, keys = self._sorted
        numbers = leading_numbers(wanted)
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.argsort(numbers)
        at = np.searchsorted(keys, numbers[open_])
        # Eight bytes of a SHA-256 are nearly always unique; digests that share them are compared whole, one by one.
        while len(open_):
            alike = at < len(keys)
            alike[alike] = keys[at[alike]] == numbers[open_[alike]]
            open_, at = open_[alike], at[alike]
            same = usable[order[at]] & (self._digests[order[at]] == wanted[open_]).all(axis=1)
            found[open_[same]] = order[at[same]]
            open_, at = open_[~same], at[~same] + 1
        return found

    def _as_located(self, place: npt.NDArray[np.int64]) -> Located:
        donor = (np.searchsorted(self._first, place, side="right") - 1).astype(np.int32)
        donor[place < 0] = -1
        return Located(donor, np.where(place < 0, -1, place - self._first[donor]))

    def _find_damaged(self, located: Located, layers: Sequence[str], view: int) -> npt.NDArray[np.bool_]:
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
        report(f"{error.message}; none of its rows are used")
        return _NO_DIGESTS
