"""Write reused, computed and repeated rows into segments; a segment is published while the next batch is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import Digests, leading_numbers
from featcache.cache.donors import Donors, Located, MemoryDonor
from featcache.cache.info import CacheInfo
from featcache.cache.layout import views_in
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.spec import Json
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredFile
from featcache.cache.tables import Skipped
from featcache.cache.writer import Scaling
from featcache.extraction.forward import Rows
from featcache.extraction.images import Images
from featcache.extraction.pipeline import Failure
from featcache.extraction.stages import Stages
from featcache.extraction.units import Unit
from featcache.files import system

Numbers = npt.NDArray[np.int64]
_BLOCK_BYTES = 8 << 20
# Values of `missing` besides a number of views: not known yet, and the image is finished.
_UNKNOWN, _DONE = -1, -2


@dataclass(eq=False)
class _OpenUnit:
    """A unit whose images are being looked up, read and computed. Places count from its first image.

    Args:
        unit: The unit.
        found: For each view, where its rows were found.
        missing: How many views of each image are still to be computed: (n,).
        left: How many images are not finished.
    """

    unit: Unit
    found: list[Located]
    missing: Numbers
    left: int
    draft: SegmentDraft | None = None
    first: dict[bytes, int] = field(default_factory=dict)
    # Images with the same bytes: {place: place of the first in this unit}, {place: number of an image in a published
    # segment}.
    repeats: dict[int, int] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    failed: dict[int, tuple[str, bytes | None]] = field(default_factory=dict)
    # Digests of found rows whose images changed before they were read for another backbone.
    earlier: dict[int, bytes] = field(default_factory=dict)


class SegmentWriter:
    """Writes the segments of some units of one extraction.

    Args:
        folder: The folder of the segments.
        info: The metadata of each segment; the provenance is added.
        units: In order.
        images: The images of the units.
        donors: Caches and segments whose rows can be reused.
        provenance: Returns the provenance of rows that are computed now; called only where there are some.
        scaling: Scale and offset of layers that are stored as integers.
        stages: Records what the caller waits for.

    Attributes:
        done: How many images are finished.
    """

    def __init__(
        self,
        folder: Path,
        info: CacheInfo,
        units: Sequence[Unit],
        images: Images,
        donors: Donors,
        *,
        provenance: Callable[[], Mapping[str, Json]],
        scaling: Scaling | None,
        stages: Stages,
    ) -> None:
        self._folder, self._info, self._units, self._images, self._donors = folder, info, units, images, donors
        self._provenance, self._scaling, self._stages = provenance, scaling, stages
        self.done = self._computed = self._copied = 0
        # The donors whose rows were computed in this run.
        self._fresh = [number for number, one in enumerate(donors.donors) if isinstance(one, MemoryDonor)]
        self._last = np.array([unit.images[-1] for unit in units], np.int64)
        self._open: dict[int, _OpenUnit] = {}
        self._next = 0
        self._published = _Published()
        # Decoding threads search the published images, and the publishing thread adds to them.
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._publishing: Future[None] | None = None

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._stages.measure("write"):
                if kind is None:
                    self._publish_ready()
                self._wait()
        finally:
            self._pool.shutdown(wait=True)
            for opened in self._open.values():
                if opened.draft is not None:
                    opened.draft.discard()

    @property
    def computed(self) -> int:
        """How many images were computed, known once all segments are written."""
        return self._computed + self._copied

    # --- what is still to be read, and computed -------------------------------------------------------------

    def open_unit(self, number: int) -> Numbers:
        """Open the unit with this number, and return the numbers of its images that have to be read, ascending."""
        unit = self._units[number]
        views, digests = views_in(self._info.spec, unit.segment.split), self._images.digests[unit.images]
        known = np.flatnonzero(self._images.known[unit.images])
        opened = _OpenUnit(
            unit=unit,
            found=[_nowhere(len(unit)) for _ in range(views)],
            missing=np.full(len(unit), _UNKNOWN, np.int64),
            left=len(unit),
        )
        self._open[number] = opened
        if len(known):
            if len(self._donors):
                for view, found in enumerate(opened.found):
                    located = self._donors.locate(digests[known], self._info.spec.layer_names, view)
                    found.donor[known], found.row[known] = located
            whole = np.all([found.donor[known] >= 0 for found in opened.found], axis=0)
            with self._lock:
                before = self._published.find(digests[known], self._images.digests)
            opened.copies.update(
                {int(known[at]): int(before[at]) for at in np.flatnonzero((before >= 0) & ~whole).tolist()}
            )
            self._settle(opened, known[whole | (before >= 0)])
            self._computed += int(np.isin(opened.found[0].donor[known[whole]], self._fresh).sum())
        self._publish_ready()
        unresolved: Numbers = unit.images[opened.missing == _UNKNOWN]
        return unresolved

    def views_to_compute(self, image: int, digest: bytes) -> tuple[int, ...]:
        """The views of an image that have to be computed. Called in decoding threads.

        Args:
            image: Its number.
            digest: The SHA-256 of its bytes.
        """
        holder = int(np.searchsorted(self._last, image))
        opened = self._open.get(holder)
        if opened is None:
            return ()
        place = int(np.searchsorted(opened.unit.images, image))
        if place == len(opened.unit) or opened.unit.images[place] != image:
            return ()
        if opened.missing[place] != _UNKNOWN:
            if self._images.known[image] and (before := self._images.digests[image].tobytes()) != digest:
                opened.earlier[place] = before
            return ()
        table = np.frombuffer(digest, np.uint8)[None]
        if not self._images.known[image] or self._images.digests[image].tobytes() != digest:
            self._locate(opened, place, table)
        views = tuple(view for view, found in enumerate(opened.found) if found.donor[place] < 0)
        with self._lock:
            if views and self._repeats(opened, place, digest, table):
                views = ()
            opened.missing[place] = len(views)
        return views

    def _locate(self, opened: _OpenUnit, place: int, table: Digests) -> None:
        if len(self._donors):
            for view, found in enumerate(opened.found):
                located = self._donors.locate(table, self._info.spec.layer_names, view)
                found.donor[place], found.row[place] = located.donor[0], located.row[0]

    def _repeats(self, opened: _OpenUnit, place: int, digest: bytes, table: Digests) -> bool:
        """Whether the same image is computed in this unit, or was computed in a published one."""
        first = opened.first.setdefault(digest, place)
        if first != place:
            opened.repeats[place] = first
            return True
        before = int(self._published.find(table, self._images.digests)[0])
        if before >= 0:
            opened.copies[place] = before
        return before >= 0

    # --- results --------------------------------------------------------------------------------------------

    def read(self, images: Numbers) -> None:
        """Record that images (n,) were read: those of which no view has to be computed are finished."""
        with self._stages.measure("write"):
            for opened, places in self._places(images):
                self._settle(opened, places[opened.missing[places] == 0])
            self._publish_ready()

    def put(self, rows: Rows) -> None:
        """Store computed rows, images ascending."""
        with self._stages.measure("write"):
            for view in np.unique(rows.views).tolist():
                of_view = np.flatnonzero(rows.views == view)
                for opened, places in self._places(rows.images[of_view]):
                    own = of_view[np.isin(rows.images[of_view], opened.unit.images[places])]
                    features = {layer: values[own] for layer, values in rows.features.items()}
                    self._draft(opened, computes=True).put(places, features, view)
                    opened.missing[places] -= 1
                    done = places[opened.missing[places] == 0]
                    self._settle(opened, done)
                    self._computed += len(done)
            self._publish_ready()

    def fail(self, failure: Failure) -> None:
        """Record an image that cannot be read or decoded."""
        for opened, places in self._places(np.array([failure.image])):
            if opened.missing[places[0]] != _DONE:
                opened.failed[int(places[0])] = failure.error.message, failure.digest
                self._settle(opened, places)

    def _places(self, images: Numbers) -> list[tuple[_OpenUnit, Numbers]]:
        """The open units that contain some of these images, with the places of these."""
        holder = np.searchsorted(self._last, images)
        found = []
        for number in np.unique(holder).tolist():
            opened = self._open.get(number)
            if opened is not None:
                some = images[holder == number]
                places = np.searchsorted(opened.unit.images, some)
                there = (places < len(opened.unit)) & (
                    opened.unit.images[places.clip(max=len(opened.unit) - 1)] == some
                )
                if there.any():
                    found.append((opened, places[there]))
        return found

    def _settle(self, opened: _OpenUnit, places: Numbers) -> None:
        opened.missing[places] = _DONE
        opened.left -= len(places)
        self.done += len(places)

    def _publish_ready(self) -> None:
        while (opened := self._open.get(self._next)) is not None and not opened.left:
            self._wait()
            self._publishing = self._pool.submit(self._publish, self._next, opened)
            self._next += 1

    def _wait(self) -> None:
        if self._publishing is not None:
            publishing, self._publishing = self._publishing, None
            publishing.result()

    # --- one segment ----------------------------------------------------------------------------------------

    def _draft(self, opened: _OpenUnit, *, computes: bool = False) -> SegmentDraft:
        if opened.draft is None:
            provenance = self._provenance() if computes else self._donors_provenance(opened)
            opened.draft = SegmentDraft(
                self._folder / opened.unit.segment.file,
                replace(self._info, provenance=provenance),
                split=opened.unit.segment.split,
                ids=self._images.ids(opened.unit.images),
                scaling=self._scaling,
            )
        return opened.draft

    def _donors_provenance(self, opened: _OpenUnit) -> Mapping[str, Json]:
        """The provenance of the first row's donor: for a segment whose rows were all found."""
        for number in opened.found[0].donor.tolist():
            donor = self._donors.donors[number] if number >= 0 else None
            if isinstance(donor, CachedSplit):
                return donor.provenance
        return self._provenance()

    def _publish(self, number: int, opened: _OpenUnit) -> None:
        draft = self._draft(opened)
        for view in range(len(opened.found)):
            self._copy_found(opened, draft, view)
            self._copy_repeats(opened, draft, view)
        if not system.replaces_open_files:
            self._close_replaced(draft.path)
        digests = self._images.digests[opened.unit.images]
        for place, earlier in opened.earlier.items():
            digests[place] = np.frombuffer(earlier, np.uint8)
        draft.publish(digests, self._list_skipped(opened))
        with self._lock:
            self._published.add(number, opened.unit.images[draft.written], digests[draft.written])
            self._copied += len(opened.repeats.keys() - opened.failed.keys()) + len(opened.copies)
            del self._open[number]

    def _copy_found(self, opened: _OpenUnit, draft: SegmentDraft, view: int) -> None:
        spec, found = self._info.spec, opened.found[view]
        skipped = np.array([*opened.failed, *opened.repeats, *opened.copies], np.int64)
        places = np.setdiff1d(np.flatnonzero(found.donor >= 0), skipped)
        at_once = max(1, _BLOCK_BYTES // sum(layer.feature_dim * 4 for layer in spec.layers))
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            located = found.take(some)
            rows = {layer: self._donors.gather(layer, located, view) for layer in spec.layer_names}
            draft.put(some, rows, view)

    def _copy_repeats(self, opened: _OpenUnit, draft: SegmentDraft, view: int) -> None:
        """Copy the rows of repeated images from where they were computed in this run."""
        for place, first in opened.repeats.items():
            if first in opened.failed:
                opened.failed[place] = opened.failed[first]
            else:
                draft.put(np.array([place]), draft.read(np.array([first]), view), view)
        for place, image in opened.copies.items():
            draft.put(np.array([place]), self._read_published_row(image, view), view)

    def _read_published_row(self, image: int, view: int) -> Mapping[str, npt.NDArray[Any]]:
        number, row = self._published.place(image)
        segment = self._units[number].segment
        with closing(StoredFile.open(self._folder / segment.file)) as file:
            found = CachedSplit(file, self._info.spec, segment.split)
            return {layer: found.gather(layer, np.array([row]), view) for layer in self._info.spec.layer_names}

    def _list_skipped(self, opened: _OpenUnit) -> list[Skipped]:
        """The skipped images of a unit."""
        found = []
        for place, (reason, digest) in sorted(opened.failed.items()):
            sample = self._images.samples[int(opened.unit.images[place])]
            hexadecimal = None if digest is None else digest.hex()
            found.append(Skipped(id=sample.id, split=sample.split, reason=reason, digest=hexadecimal))
        return found

    def _close_replaced(self, path: Path) -> None:
        """Close the file that is replaced, which may be a donor of rows."""
        for donor in self._donors.donors:
            if isinstance(donor, CachedSplit) and donor.file.path in (path, path.parent):
                with suppress(OSError):
                    donor.file.close()


def _nowhere(count: int) -> Located:
    return Located(np.full(count, -1, np.int32), np.full(count, -1, np.int64))


class _Published:
    """The images whose rows were published in this run, searched by digest. It takes 16 bytes per image."""

    _MOST_PIECES = 8

    def __init__(self) -> None:
        # The first 8 bytes of digests, sorted, and the numbers of their images.
        self._pieces: list[tuple[npt.NDArray[np.uint64], Numbers]] = []
        self._segments: dict[int, Numbers] = {}

    def add(self, segment: int, images: Numbers, digests: Digests) -> None:
        """Add a published segment: the images of its rows (n,), and the digests of these images (n, 32)."""
        if not len(images):
            return
        self._segments[segment] = images
        self._pieces.append(_sort(leading_numbers(digests), images))
        if len(self._pieces) > self._MOST_PIECES:
            keys, numbers = (np.concatenate(columns) for columns in zip(*self._pieces, strict=True))
            self._pieces = [_sort(keys, numbers)]

    def find(self, wanted: Digests, digests: Digests) -> Numbers:
        """For each digest of `wanted` (n, 32) the number of an image that has it, or -1: (n,).

        `digests` are those of all images.
        """
        found = np.full(len(wanted), -1, np.int64)
        keys = leading_numbers(wanted)
        for there, numbers in self._pieces:
            place = np.searchsorted(there, keys).clip(max=len(there) - 1)
            # Eight bytes of a SHA-256 almost never collide; where they do, the image is computed again.
            same = (there[place] == keys) & (digests[numbers[place]] == wanted).all(axis=1)
            found[same] = numbers[place[same]]
        return found

    def place(self, image: int) -> tuple[int, int]:
        """The segment that holds an image's row, and the row."""
        for segment, images in self._segments.items():
            row = int(np.searchsorted(images, image))
            if row < len(images) and images[row] == image:
                return segment, row
        raise KeyError(image)


def _sort(keys: npt.NDArray[np.uint64], images: Numbers) -> tuple[npt.NDArray[np.uint64], Numbers]:
    order = np.argsort(keys, kind="stable")
    return keys[order], images[order]
