"""From computed, reused and repeated rows to segments on disk, each published behind the back of the next batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import leading_numbers
from featcache.cache.donors import Donors, Located
from featcache.cache.info import CacheInfo
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.spec import Json
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredFile
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.writer import Scaling
from featcache.extraction.plan import PlannedRows
from featcache.extraction.stages import Stages
from featcache.extraction.units import Unit
from featcache.files import system

Rows = npt.NDArray[np.int64]
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The rows of some units, and where each comes from.

    Args:
        units: In order.
        planned: Their rows, one unit after the other: (n,).
        donors: What has rows already.
        located: Where each row was found, (n,); nowhere: it is computed.
        source: For a row that was found nowhere, the first row of the same image and view, which is computed in its
            place; -1 for a row that was found: int64 (n,).
    """

    units: Sequence[Unit]
    planned: PlannedRows
    donors: Donors
    located: Located
    source: Rows

    @classmethod
    def of(cls, units: Sequence[Unit], planned: PlannedRows, donors: Donors, layers: Sequence[str]) -> Work:
        """Look the rows up. Every row that is found is read and checked in these layers."""
        located = donors.locate(planned.digests, layers)
        source = np.full(len(located.donor), -1, np.int64)
        missing = np.flatnonzero(located.donor < 0)
        source[missing] = missing[first_of_equals(planned.digests[missing])]
        return cls(units=units, planned=planned, donors=donors, located=located, source=source)

    @property
    def missing(self) -> Rows:
        """The rows that were found nowhere, ascending."""
        return np.flatnonzero(self.located.donor < 0)

    @property
    def computed(self) -> Rows:
        """Those of them that have to be computed: an image that stands twice only once."""
        return np.flatnonzero(self.source == np.arange(len(self.source)))

    @property
    def starts(self) -> Rows:
        """At which row each unit begins, and the end: (units + 1,)."""
        return np.cumsum([0, *map(len, self.units)])


def first_of_equals(digests: npt.NDArray[np.uint8]) -> Rows:
    """For each digest (n, 32) the number of the first that is equal to it: int64 (n,)."""
    first = np.arange(len(digests))
    # Eight bytes of a SHA-256 tell nearly all apart, and numbers sort fast; only their equals are compared whole.
    keys = leading_numbers(digests)
    ordered = np.sort(keys)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if len(several):
        place = np.searchsorted(several, keys)
        place[place == len(several)] = 0
        seen: dict[bytes, int] = {}
        for row in np.flatnonzero(several[place] == keys).tolist():
            first[row] = seen.setdefault(digests[row].tobytes(), row)
    return first


class SegmentWriter:
    """Writes the segments of some units. Rows are put as they are computed, in ascending order.

    Args:
        folder: Where the segments lie.
        info: What each says of itself; the provenance is added.
        work: The rows, and where they come from.
        provenance: Of rows that are computed now; asked for only where there are some.
        scaling: Of layers whose values are stored otherwise than they are.
        stages: Notes what the caller waited for.
    """

    def __init__(
        self,
        folder: Path,
        info: CacheInfo,
        work: Work,
        *,
        provenance: Callable[[], Mapping[str, Json]],
        scaling: Scaling | None,
        stages: Stages,
    ) -> None:
        self._folder, self._info, self._work = folder, info, work
        self._provenance, self._scaling, self._stages = provenance, scaling, stages
        self._starts = work.starts
        unit_of = np.searchsorted(self._starts, work.computed, side="right") - 1
        self._outstanding = np.bincount(unit_of, minlength=len(work.units))
        self._drafts: dict[int, SegmentDraft] = {}
        self._failed: dict[int, str] = {}
        self._written: dict[int, npt.NDArray[np.bool_]] = {}
        self._next = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._publishing: Future[None] | None = None

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._stages.measured("write"):
                if kind is None:
                    self._publish_ready()
                self._wait()
        finally:
            self._pool.shutdown(wait=True)
            for draft in self._drafts.values():
                draft.discard()

    def put(self, index: Rows, features: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take computed rows: their numbers among those of the work, ascending (n,), and {layer: (n, D)}."""
        with self._stages.measured("write"):
            unit_of = np.searchsorted(self._starts, index, side="right") - 1
            for number in np.unique(unit_of).tolist():
                own = np.flatnonzero(unit_of == number)
                rows = {layer: values[own] for layer, values in features.items()}
                self._draft(number, computes=True).put(index[own] - self._starts[number], rows)
                self._outstanding[number] -= len(own)
            self._publish_ready()

    def fail(self, index: int, reason: str) -> None:
        """A row whose image cannot be used, and why."""
        self._failed[index] = reason
        self._outstanding[int(np.searchsorted(self._starts, index, side="right")) - 1] -= 1

    def _publish_ready(self) -> None:
        while self._next < len(self._work.units) and not self._outstanding[self._next]:
            self._wait()
            self._publishing = self._pool.submit(self._publish, self._next)
            self._next += 1

    def _wait(self) -> None:
        if self._publishing is not None:
            publishing, self._publishing = self._publishing, None
            publishing.result()

    # --- one segment ----------------------------------------------------------------------------------------

    def _draft(self, number: int, *, computes: bool = False) -> SegmentDraft:
        if number not in self._drafts:
            unit = self._work.units[number]
            provenance = self._provenance() if computes else self._donors_provenance(number)
            self._drafts[number] = SegmentDraft(
                self._folder / unit.segment.file,
                replace(self._info, provenance=provenance),
                split=unit.segment.split,
                table=self._table(number),
                scaling=self._scaling,
            )
        return self._drafts[number]

    def _rows(self, number: int) -> slice:
        return slice(int(self._starts[number]), int(self._starts[number + 1]))

    def _table(self, number: int) -> SplitTable:
        return self._work.planned.table(self._rows(number))

    def _donors_provenance(self, number: int) -> Mapping[str, Json]:
        """That of the first row's donor: where every row is reused, nothing is computed now."""
        for donor in self._work.located.donor[self._rows(number)].tolist():
            if donor >= 0:
                found: Mapping[str, Json] = getattr(self._work.donors.donors[donor], "provenance", {})
                return found
        return {}

    def _publish(self, number: int) -> None:
        draft = self._draft(number)
        self._copy_reused(number, draft)
        self._copy_repeated(number, draft)
        self._written[number] = draft.written
        if not system.replaces_open_files:
            self._close_replaced(draft.path)
        draft.publish(self._skipped(number))
        del self._drafts[number]

    def _copy_reused(self, number: int, draft: SegmentDraft) -> None:
        rows = self._rows(number)
        places = np.flatnonzero(self._work.located.donor[rows] >= 0)
        spec = self._info.spec
        at_once = max(1, _BLOCK_BYTES // sum(layer.feature_dim * 4 for layer in spec.layers))
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            located = self._work.located.take(rows.start + some)
            draft.put(some, {layer: self._work.donors.gather(layer, located) for layer in spec.layer_names})

    def _copy_repeated(self, number: int, draft: SegmentDraft) -> None:
        """Rows of images that stand twice, from where they were computed in this run."""
        rows = self._rows(number)
        source = self._work.source[rows]
        repeated = np.flatnonzero((source >= 0) & (source != np.arange(rows.start, rows.stop)))
        for place in repeated.tolist():
            first = int(source[place])
            if first in self._failed:
                self._failed[rows.start + place] = self._failed[first]
            else:
                draft.put(np.array([place]), self._computed_row(first, number, draft))

    def _computed_row(self, index: int, number: int, draft: SegmentDraft) -> Mapping[str, npt.NDArray[Any]]:
        holder = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[holder])
        if holder == number:
            return draft.read(np.array([place]))
        unit = self._work.units[holder]
        row = np.array([np.count_nonzero(self._written[holder][:place])])
        with closing(StoredFile.open(self._folder / unit.segment.file)) as file:
            split = CachedSplit(file, self._info.spec, unit.segment.split)
            return {layer: split.gather(layer, row) for layer in self._info.spec.layer_names}

    def _skipped(self, number: int) -> list[Skipped]:
        """The images that were left out, each once, however many views it has."""
        rows = self._rows(number)
        found: dict[str, Skipped] = {}
        for index in sorted(index for index in list(self._failed) if rows.start <= index < rows.stop):
            sample, digest = self._work.planned.samples[index], self._work.planned.images[index].tobytes().hex()
            skipped = Skipped(id=sample.id, split=sample.split, reason=self._failed[index], digest=digest)
            found.setdefault(sample.id, skipped)
        return list(found.values())

    def _close_replaced(self, path: Path) -> None:
        """Rows may be copied from the very file that is replaced."""
        for donor in self._work.donors.donors:
            if isinstance(donor, CachedSplit) and donor.file.path in (path, path.parent):
                with suppress(OSError):
                    donor.file.close()
