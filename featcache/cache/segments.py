"""A cache in several files: segments that are cache files of their own, and the manifest that names them.

The manifest of a complete cache names every segment with its size, its rows and the digest of its trailer, which in
turn holds the digests of its header and tables; so no segment can be missing, short or another file without an error
that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.layout import SPLITS, ArrayPlace, Contents, FeatureAttributes
from featcache.cache.manifest import Manifest, Segment, trailer_digest
from featcache.cache.rows import Rows, read_rows_of
from featcache.cache.spec import Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredArrays, StoredFile
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound


class SegmentedFile(StoredArrays):
    """The arrays of a cache in several files: those of its segments, one after the other."""

    def __init__(self, path: Path, manifest: Manifest, segments: Sequence[StoredFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.segments = tuple(segments)
        self.contents = _joined(manifest, self.segments)
        self._holders = {
            split: [number for number, one in enumerate(manifest.segments) if one.split == split and one.rows]
            for split in SPLITS
        }
        self._starts = {
            split: np.cumsum([0, *(manifest.segments[number].rows for number in holders)])
            for split, holders in self._holders.items()
        }

    @classmethod
    def open(cls, path: Path) -> SegmentedFile:
        """Open the manifest and check every segment against it.

        Raises:
            CacheNotFound: There is no manifest.
            CacheIncomplete: Segments are still to be written.
            CacheForeign: It is another kind of file.
            CacheDamaged: A segment is missing, short or not the one that the manifest names.
        """
        manifest = Manifest.read(path)
        manifest.require_complete(path)
        with contextlib.ExitStack() as opened:
            segments = [
                opened.enter_context(contextlib.closing(_opened(path, one, manifest))) for one in manifest.segments
            ]
            whole = cls(path, manifest, segments)
            opened.pop_all()
            return whole

    @property
    def table_names(self) -> tuple[str, ...]:
        """The small arrays, which are digested whole."""
        return tuple(dict.fromkeys(name for one in self.segments for name in one.table_names))

    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows of an array, unchecked: (n, ...) in the stored dtype. `rows` must be in range."""
        place, split = self.place(name), name.split("/")[0]
        files = [self.segments[number] for number in self._holders[split]]
        if place.dtype.startswith("|S"):
            return self._widened(name, rows)
        opened = [(file.opened(), file.place(name).offset) for file in files]
        return read_rows_of(opened, self._starts[split][:-1], rows, place.shape[1:], place.dtype, out)

    def _widened(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """Rows of an array that is narrower in one segment than in another."""
        place, split = self.place(name), name.split("/")[0]
        starts, out = self._starts[split], np.empty(len(rows), place.dtype)
        holder = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(holder).tolist():
            places = np.flatnonzero(holder == number)
            out[places] = self._segment(split, number).read(name, rows[places] - starts[number])
        return out

    def read_table(self, name: str) -> npt.NDArray[Any]:
        """A whole small array, read-only. Raises CacheDamaged where a segment's does not match its digest."""
        place = self.place(name)
        table = np.empty(place.shape, place.dtype)
        split = name.split("/")[0]
        for number, start in enumerate(self._starts[split][:-1].tolist()):
            piece = self._segment(split, number).read_table(name)
            table[start : start + len(piece)] = piece
        table.flags.writeable = False
        return table

    def padding(self) -> Iterator[tuple[int, bytes]]:
        """What lies between the arrays of each segment: (offset, bytes), all zero in a sound file."""
        for one in self.segments:
            yield from one.padding()

    def close(self) -> None:
        """Give the files back. Reading again opens them again."""
        for one in self.segments:
            one.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.manifest, self.segments))

    def _segment(self, split: str, number: int) -> StoredFile:
        return self.segments[self._holders[split][number]]


def open_segments(
    folder: Path, manifest: Manifest, report: Callable[[str], None] | None = None
) -> list[tuple[Segment, CachedSplit]]:
    """The segments of an unfinished cache that can be read, and their rows, in the manifest's order.

    A segment that is not there is left out; so is one that is damaged, which `report` is told. Raises CacheUnreadable.
    """
    found = []
    for segment in manifest.segments:
        try:
            file = StoredFile.open(folder / segment.file)
        except CacheNotFound:
            continue
        except (CacheDamaged, CacheForeign) as error:
            if report is not None:
                report(f"{error.message}; its rows are computed again")
            continue
        spec = Spec.from_json(file.contents.texts["spec"])
        if segment.split in {name.split("/")[0] for name in file.contents.arrays}:
            found.append((segment, CachedSplit(file, spec, segment.split)))
    return found


def complete_manifest(folder: Path, manifest: Manifest, texts: dict[str, str]) -> Manifest:
    """The manifest of a folder in which every segment has been written.

    Args:
        folder: Where they are.
        manifest: The unfinished one.
        texts: The root attributes of the whole.
    """
    written = []
    for segment in manifest.segments:
        with contextlib.closing(StoredFile.open(folder / segment.file)) as file:
            written.append(segment.with_trailer(file.trailer))
    return replace(manifest, texts=texts, segments=tuple(written), complete=True)


def _opened(folder: Path, segment: Segment, manifest: Manifest) -> StoredFile:
    path = folder / segment.file
    try:
        file = StoredFile.open(path)
    except CacheNotFound as error:
        raise _broken(folder, f"the segment {segment.file} is missing") from error
    except (CacheDamaged, CacheForeign) as error:
        raise _broken(folder, f"the segment {segment.file} cannot be used: {error.message}") from error
    try:
        _require_the_named(file, folder, segment, manifest)
    except BaseException:
        file.close()
        raise
    return file


def _require_the_named(file: StoredFile, folder: Path, segment: Segment, manifest: Manifest) -> None:
    if file.trailer.file_bytes != segment.nbytes:
        got = file.trailer.file_bytes
        raise _broken(folder, f"the segment {segment.file}: expected {segment.nbytes} bytes, got {got}")
    if trailer_digest(file.trailer) != segment.trailer:
        raise _broken(folder, f"the segment {segment.file} is another file than the one that was written here")
    if Spec.from_json(file.contents.texts["spec"]).fingerprint != manifest.spec.fingerprint:
        raise _broken(folder, f"the segment {segment.file} was computed under another spec")
    rows = {name.split("/")[0]: place.shape[0] for name, place in file.contents.arrays.items()}
    if rows != {segment.split: segment.rows}:
        raise CacheForeign(f"{folder}: the segment {segment.file} has rows {rows}, its manifest says {segment.rows}")


def _broken(folder: Path, what: str) -> CacheDamaged:
    return CacheDamaged(
        f"{folder}: {what}", hint="bring the file back, or extract again: rows of sound segments are taken over"
    )


def _joined(manifest: Manifest, segments: Sequence[StoredFile]) -> Contents:
    """The contents that one file with all rows would have. A split without rows is left out."""
    arrays: dict[str, ArrayPlace] = {}
    features: dict[str, FeatureAttributes] = {}
    for named, one in zip(manifest.segments, segments, strict=True):
        if not named.rows:
            continue
        for name, place in one.contents.arrays.items():
            before = arrays.get(name)
            arrays[name] = place if before is None else _after(before, place)
        for name, attributes in one.contents.features.items():
            if features.setdefault(name, attributes) != attributes:
                raise CacheForeign(f"{one.path}: {name} is scaled otherwise than in the other segments")
    return Contents(texts=manifest.texts, arrays=arrays, features=features)


def _after(first: ArrayPlace, second: ArrayPlace) -> ArrayPlace:
    # Ids are as wide as the longest of all.
    dtype = np.promote_types(first.dtype, second.dtype).str
    return ArrayPlace(name=first.name, shape=(first.shape[0] + second.shape[0], *first.shape[1:]), dtype=dtype)
