"""Open a cache file, check it, and read it at offsets: from threads, forked children and other processes.

Opening checks the trailer, the exact size and the header's digest before libhdf5 reads the header, and then that
attributes, arrays and trailer agree. After that no libhdf5 handle stays open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featcache.cache.checksums import table_digest
from featcache.cache.info import CacheInfo, FileInfo, TargetsInfo
from featcache.cache.layout import ArrayPlace, Contents, is_table, read_json, rows_in, text_bytes_in
from featcache.cache.rows import Rows, read_array, read_rows
from featcache.cache.spec import Selection, Spec
from featcache.cache.tables import Skipped
from featcache.cache.targets import columns_of
from featcache.cache.trailer import FORMAT, TARGETS_FORMAT, Trailer, damage_error, open_cache, read_trailer
from featcache.errors import CacheForeign, CacheNotFound, CacheOutdated
from featcache.files import ReadableFile


class StoredArrays(ABC):
    """The arrays of a cache, in one file or in several: their places and their rows."""

    path: Path
    contents: Contents

    def place(self, name: str) -> ArrayPlace:
        """The shape, dtype and offset of an array."""
        return self.contents.arrays[name]

    @property
    @abstractmethod
    def table_names(self) -> tuple[str, ...]:
        """The names of the small arrays, each with one digest of the whole."""

    @abstractmethod
    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read rows of an array of numbers, unchecked: (n, ...) in the stored dtype. `rows` must be in range."""

    @abstractmethod
    def read_table(self, name: str) -> npt.NDArray[Any]:
        """Read a whole small array, read-only. Raises CacheDamaged where it does not match its digest."""

    @abstractmethod
    def padding(self) -> Iterator[tuple[int, bytes]]:
        """The bytes between the arrays and before the trailer: (offset, bytes), all zero in an undamaged file."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open. A later read opens it again."""


class StoredFile(StoredArrays):
    """The arrays of one cache file. Pickling leaves out the open file; it is opened again when it is needed."""

    def __init__(self, path: Path, trailer: Trailer, contents: Contents, file: ReadableFile | None = None) -> None:
        self.path = path
        self.trailer = trailer
        self.contents = contents
        self._file = file

    @classmethod
    def open(cls, path: Path, format: str = FORMAT) -> StoredFile:
        """Open and check a file of the given format. Raises CacheNotFound, CacheForeign, CacheDamaged."""
        file = open_cache(path)
        try:
            trailer = read_trailer(file)
            contents = _contents(file, trailer)
            _require_format(path, contents, format)
            return cls(path, trailer, contents, file)
        except BaseException:
            file.close()
            raise

    @property
    def table_names(self) -> tuple[str, ...]:
        return tuple(self.trailer.tables)

    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        place = self.place(name)
        return read_rows(self.open_file(), place.offset, rows, place.shape[1:], place.dtype, out)

    def read_table(self, name: str) -> npt.NDArray[Any]:
        place = self.place(name)
        table = read_array(self.open_file(), place.offset, place.shape, place.dtype)
        if table_digest(table) != self.trailer.tables[name]:
            raise damage_error(self.path, f"the table {name} does not match its digest")
        table.flags.writeable = False
        return table

    def padding(self) -> Iterator[tuple[int, bytes]]:
        places = sorted((place for place in self.contents.arrays.values() if place.nbytes), key=lambda one: one.offset)
        trailer_offset = self.trailer.file_bytes - len(self.trailer.to_bytes())
        start = self.trailer.header_bytes
        for begin, end in [*((one.offset, one.offset + one.nbytes) for one in places), (trailer_offset, 0)]:
            yield start, bytes(self.open_file().read(start, max(0, begin - start)))
            start = end

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.trailer, self.contents))

    def open_file(self) -> ReadableFile:
        """The open file; it is opened again if it was closed. Raises CacheNotFound where it has been replaced."""
        # No lock, because a fork could inherit it locked. Two threads may both open the file; the last one is kept.
        file = self._file
        if file is None:
            self._file = file = _reopen(self.path, self.trailer)
        return file


def _contents(file: ReadableFile, trailer: Trailer) -> Contents:
    # Only opening a cache needs libhdf5; workers that receive an open cache do not import it.
    from featcache.cache.inspection import read_header

    header = bytes(file.read(0, trailer.header_bytes))
    if table_digest(header) != trailer.header_digest:
        raise damage_error(file.path, "its header does not match its digest")
    try:
        contents = read_header(header, file.size)
        _require_agreement(contents, trailer)
    except CacheOutdated as error:
        raise CacheOutdated(str(file.path)) from error
    except CacheForeign as error:
        raise foreign_error(file.path, error) from error
    return contents


def foreign_error(path: Path, error: CacheForeign) -> CacheForeign:
    """The error for a file whose seal is right, but whose contents are not those of a cache."""
    return CacheForeign(f"{path} cannot be trusted: {error.message}", hint=error.hint)


def _require_format(path: Path, contents: Contents, format: str) -> None:
    if contents.format != format:
        raise CacheForeign(f"{path} has the format {contents.format}, expected {format}")


def info_of(contents: Contents) -> FileInfo:
    """Read the metadata of a file from its root attributes. Raises CacheForeign, CacheOutdated."""
    texts = contents.texts
    columns, provenance = columns_of(texts), read_json(texts, "provenance", dict)
    if contents.format == TARGETS_FORMAT:
        return TargetsInfo(set_name=texts["set_name"], columns=columns, provenance=provenance)
    return CacheInfo(
        spec=Spec.from_json(texts["spec"]),
        selection=Selection.from_json(texts["selection"]),
        set_name=texts["set_name"],
        columns=columns,
        provenance=provenance,
        skipped=read_skipped(texts),
    )


def read_skipped(texts: Mapping[str, str]) -> tuple[Skipped, ...]:
    """Read the skipped images from the root attribute `skipped`. Raises CacheForeign."""
    try:
        return tuple(Skipped(**one) for one in read_json(texts, "skipped", list))
    except TypeError as error:
        raise CacheForeign(f"featcache did not write its attribute skipped: {error}") from error


def _require_agreement(contents: Contents, trailer: Trailer) -> None:
    """Raise CacheForeign unless attributes, arrays and trailer agree."""
    info, rows = info_of(contents), rows_in(contents.arrays.values())
    _require_arrays(contents, info, rows)
    if trailer.about != info.about(rows) or set(trailer.tables) != set(filter(is_table, contents.arrays)):
        raise CacheForeign("its trailer and its header describe different caches")


def _require_arrays(contents: Contents, info: FileInfo, rows: Mapping[str, int]) -> None:
    places = info.arrays(rows, text_bytes_in(contents.arrays.values()))
    expected = {place.name: (place.shape, place.dtype) for place in places}
    got = {name: (place.shape, place.dtype) for name, place in contents.arrays.items()}
    for name in sorted({*expected, *got}):
        if expected.get(name) != got.get(name):
            raise CacheForeign(f"{name}: expected {expected.get(name)}, got {got.get(name)}")
    shapes = {name: attributes.shape for name, attributes in info.attributes(rows, {}).items()}
    for name, attributes in contents.features.items():
        if attributes.shape != shapes[name]:
            raise CacheForeign(f"{name}: expected features of shape {shapes[name]}, got {attributes.shape}")


def _reopen(path: Path, trailer: Trailer) -> ReadableFile:
    file = open_cache(path)
    try:
        found = read_trailer(file)
    except BaseException:
        file.close()
        raise
    if found != trailer:
        file.close()
        raise CacheNotFound(f"{path} has been replaced since it was opened", hint="open the cache again")
    return file
