"""A cache in several files: segments (each a complete cache file), a targets file, and the manifest that lists them.

The manifest of a complete cache has the size of every file and the digest of its trailer, and the trailer has the
digests of its header and tables. So a file that is missing, truncated or replaced is always detected. Targets are
joined by sample id: the rows of their file may be in another order than those of the segments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.info import CacheInfo, TargetsInfo
from featcache.cache.layout import SPLITS, ArrayPlace, Contents, FeatureAttributes, ids_name, rows_in
from featcache.cache.manifest import TARGETS_FILES, Manifest, Segment, TargetsFile, trailer_digest
from featcache.cache.rows import Rows, read_rows_of
from featcache.cache.spec import Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredArrays, StoredFile
from featcache.cache.tables import SplitTable
from featcache.cache.targets import columns_of, is_target_array, rows_by_id, target_from_file
from featcache.cache.trailer import FORMAT, TARGETS_FORMAT
from featcache.cache.writer import CacheDraft, ids_and_targets, text_bytes_of
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound


class SegmentedFile(StoredArrays):
    """The arrays of a cache in several files: the segments one after the other, and the targets."""

    def __init__(self, path: Path, manifest: Manifest, segments: Sequence[StoredFile], targets: StoredFile) -> None:
        self.path = path
        self.manifest = manifest
        self.segments = tuple(segments)
        self.targets = targets
        self.contents = _join_contents(manifest, self.segments)
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
            CacheIncomplete: Not all segments are written yet.
            CacheForeign: It is another kind of file.
            CacheDamaged: A segment is missing, truncated, or not the one in the manifest.
        """
        manifest = Manifest.read(path)
        manifest.require_complete(path)
        with contextlib.ExitStack() as opened:
            segments = [
                opened.enter_context(contextlib.closing(_open_checked_segment(path, one, manifest)))
                for one in manifest.segments
            ]
            targets = opened.enter_context(contextlib.closing(open_targets(path, manifest)))
            cache = cls(path, manifest, segments, targets)
            opened.pop_all()
            return cache

    @property
    def table_names(self) -> tuple[str, ...]:
        """The names of the small arrays, each with one digest of the whole."""
        return tuple(dict.fromkeys(name for one in (*self.segments, self.targets) for name in one.table_names))

    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read rows of an array of numbers, unchecked: (n, ...) in the stored dtype. `rows` must be in range."""
        place, split = self.place(name), name.split("/")[0]
        files = [self.segments[number] for number in self._holders[split]]
        opened = [(file.open_file(), file.place(name).offset) for file in files]
        return read_rows_of(opened, self._starts[split][:-1], rows, place.shape[1:], place.dtype, out)

    def read_table(self, name: str) -> npt.NDArray[Any]:
        """Read a whole small array, read-only. Raises CacheDamaged where a part does not match its digest."""
        if is_target_array(name):
            return self._target(name)
        place = self.place(name)
        table = np.empty(place.shape, place.dtype)
        split = name.split("/")[0]
        for number, start in enumerate(self._starts[split][:-1].tolist()):
            piece = self._segment(split, number).read_table(name)
            table[start : start + len(piece)] = piece
        table.flags.writeable = False
        return table

    def _target(self, name: str) -> npt.NDArray[Any]:
        """The values of a target in the order of the rows, joined by sample id."""
        split, column = name.split("/")[0], name.split("/")[2]
        (described,) = (one for one in columns_of(self.contents.texts) if one.name == column)
        ids = ids_name(split)
        if name not in self.targets.contents.arrays:
            return described.missing(self.place(ids).shape[0])
        target = target_from_file(described, self.targets.read_table(name), f"{self.targets.path}, {split}")
        rows = rows_by_id(self.targets.read_table(ids), self.read_table(ids))
        return target.at(rows).values

    def padding(self) -> Iterator[tuple[int, bytes]]:
        """The bytes between the arrays of each file: (offset, bytes), all zero in an undamaged file."""
        for one in (*self.segments, self.targets):
            yield from one.padding()

    def close(self) -> None:
        """Close the files. A later read opens them again."""
        for one in (*self.segments, self.targets):
            one.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.manifest, self.segments, self.targets))

    def _segment(self, split: str, number: int) -> StoredFile:
        return self.segments[self._holders[split][number]]


def open_segments(
    folder: Path, manifest: Manifest, report: Callable[[str], None] | None = None
) -> list[tuple[Segment, CachedSplit]]:
    """Open the segments of an unfinished cache that can be read; returns them with their rows, in order.

    Missing and damaged segments are left out; `report` is called with a message for each damaged one. Raises
    CacheUnreadable.
    """
    return [
        (segment, split)
        for segment in manifest.segments
        for split in open_segment(folder / segment.file, report)
        if split.name == segment.split
    ]


def open_segment(path: Path, report: Callable[[str], None] | None = None) -> list[CachedSplit]:
    """Open the splits of one file; none where it is missing, or damaged, for which `report` is called."""
    try:
        file = StoredFile.open(path)
    except CacheNotFound:
        return []
    except (CacheDamaged, CacheForeign) as error:
        if report is not None:
            report(f"{error.message}; its rows are computed again")
        return []
    spec = Spec.from_json(file.contents.texts["spec"])
    return [CachedSplit(file, spec, split) for split in rows_in(file.contents.arrays.values())]


def open_targets(folder: Path, manifest: Manifest) -> StoredFile:
    """Open the targets file in a manifest. Raises CacheDamaged where it is missing, truncated or another file."""
    if manifest.targets is None:
        raise _broken(folder, "its manifest lists no targets file")
    what, named = f"the file {manifest.targets.file}", manifest.targets
    file = _open_named(folder, what, named.file, TARGETS_FORMAT)
    try:
        _require_the_written(file, folder, what, named.nbytes, named.trailer)
        _require_the_targets(file, folder, what, manifest)
    except BaseException:
        file.close()
        raise
    return file


def complete_manifest(folder: Path, manifest: Manifest, info: CacheInfo, tables: Mapping[str, SplitTable]) -> Manifest:
    """Write the targets file of a folder in which every segment is written, and return the complete manifest.

    The caller writes the manifest.

    Args:
        folder: The folder of the segments.
        manifest: The unfinished manifest.
        info: The metadata of the cache.
        tables: Its rows by split, with the values of every target of `info`.

    Returns:
        The complete manifest.

    Raises:
        InvalidOption: The tables do not fit the targets.
        CacheUnwritable: The targets file cannot be written.
    """
    written = []
    for segment in manifest.segments:
        with contextlib.closing(StoredFile.open(folder / segment.file)) as file:
            written.append(segment.with_trailer(file.trailer))
    complete = replace(manifest, texts=info.texts(), segments=tuple(written), complete=True)
    return with_targets(folder, complete, info, tables)


def with_targets(folder: Path, manifest: Manifest, info: CacheInfo, tables: Mapping[str, SplitTable]) -> Manifest:
    """Write a new targets file, next to the one in the manifest, and return a manifest with the new one.

    The caller writes the manifest, and then removes the old file (`discard_other_targets`). Arguments and errors are
    those of `complete_manifest`.
    """
    used = None if manifest.targets is None else manifest.targets.file
    file = next(name for name in TARGETS_FILES if name != used)
    about = TargetsInfo(set_name=info.set_name, columns=info.columns, provenance={"created": info.created})
    arrays = {split: ids_and_targets(split, table, info.columns) for split, table in tables.items()}
    draft = CacheDraft(
        folder / file,
        about,
        rows={split: len(table) for split, table in tables.items()},
        text_bytes=text_bytes_of(arrays.values()),
    )
    try:
        for name, values in (pair for some in arrays.values() for pair in some.items()):
            draft.write_table(name, values)
    except BaseException:
        draft.discard()
        raise
    draft.publish()
    return replace(manifest, texts=info.texts(), targets=TargetsFile.of(file, draft.trailer))


def discard_other_targets(folder: Path, manifest: Manifest) -> None:
    """Remove the targets file that a manifest has replaced. A file that a reader has open may stay."""
    for file in TARGETS_FILES:
        if manifest.targets is None or file != manifest.targets.file:
            with contextlib.suppress(OSError):
                (folder / file).unlink()


def _open_named(folder: Path, what: str, file: str, format: str) -> StoredFile:
    try:
        return StoredFile.open(folder / file, format)
    except CacheNotFound as error:
        raise _broken(folder, f"{what} is missing") from error
    except (CacheDamaged, CacheForeign) as error:
        raise _broken(folder, f"{what} cannot be used: {error.message}") from error


def _open_checked_segment(folder: Path, segment: Segment, manifest: Manifest) -> StoredFile:
    what = f"the segment {segment.file}"
    file = _open_named(folder, what, segment.file, FORMAT)
    try:
        _require_the_written(file, folder, what, segment.nbytes, segment.trailer)
        _require_the_rows(file, folder, segment, manifest)
    except BaseException:
        file.close()
        raise
    return file


def _require_the_rows(file: StoredFile, folder: Path, segment: Segment, manifest: Manifest) -> None:
    what = f"the segment {segment.file}"
    if Spec.from_json(file.contents.texts["spec"]).fingerprint != manifest.spec.fingerprint:
        raise _broken(folder, f"{what} was computed under another spec")
    rows = rows_in(file.contents.arrays.values())
    if rows != {segment.split: segment.rows}:
        raise CacheForeign(f"{folder}: {what} has rows {rows}, expected {segment.rows} by its manifest")
    if columns_of(file.contents.texts):
        raise CacheForeign(f"{folder}: {what} holds targets, expected rows alone")


def _require_the_targets(file: StoredFile, folder: Path, what: str, manifest: Manifest) -> None:
    if manifest.complete and file.contents.texts["targets"] != manifest.texts["targets"]:
        raise _broken(folder, f"{what} has other targets than its manifest lists")


def _require_the_written(file: StoredFile, folder: Path, what: str, nbytes: int | None, trailer: str | None) -> None:
    if file.trailer.file_bytes != nbytes:
        raise _broken(folder, f"{what}: expected {nbytes} bytes, got {file.trailer.file_bytes}")
    if trailer_digest(file.trailer) != trailer:
        raise _broken(folder, f"{what} is another file than the one that was written here")


def _broken(folder: Path, what: str) -> CacheDamaged:
    return CacheDamaged(
        f"{folder}: {what}", hint="restore the file, or extract again: rows of undamaged segments are reused"
    )


def _join_contents(manifest: Manifest, segments: Sequence[StoredFile]) -> Contents:
    """The contents that a single file with all rows would have. A split without rows is left out."""
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
                raise CacheForeign(f"{one.path}: {name} has another scale or offset than in the other segments")
    return Contents(format=FORMAT, texts=manifest.texts, arrays=arrays, features=features)


def _after(first: ArrayPlace, second: ArrayPlace) -> ArrayPlace:
    # Text arrays are as wide as the longest text.
    dtype = np.promote_types(first.dtype, second.dtype).str
    return ArrayPlace(name=first.name, shape=(first.shape[0] + second.shape[0], *first.shape[1:]), dtype=dtype)
