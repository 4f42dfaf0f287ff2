"""A cache file that was opened, checked and can be read at offsets: by threads, forked children, other processes.

Opening checks the trailer, the exact size and the header's digest before libhdf5 sees the header, and then that
attributes, arrays and trailer tell one story. After that no handle of libhdf5 is left.
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
from featcache.cache.trailer import FORMAT, TARGETS_FORMAT, Trailer, damaged, open_cache, read_trailer
from featcache.errors import CacheForeign, CacheNotFound, CacheOutdated
from featcache.files import ReadableFile


class StoredArrays(ABC):
    """The arrays of a cache, in one file or in several: where they are, and their rows."""

    path: Path
    contents: Contents

    def place(self, name: str) -> ArrayPlace:
        """Where an array is."""
        return self.contents.arrays[name]

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on disk."""

    @property
    @abstractmethod
    def table_names(self) -> tuple[str, ...]:
        """The small arrays, which are digested whole."""

    @abstractmethod
    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows of an array, unchecked: (n, ...) in the stored dtype. `rows` must be in range."""

    @abstractmethod
    def read_table(self, name: str) -> npt.NDArray[Any]:
        """A whole small array, read-only. Raises CacheDamaged where it does not match its digest."""

    @abstractmethod
    def padding(self) -> Iterator[tuple[int, bytes]]:
        """What lies between the arrays and before the trailer: (offset, bytes), all zero in a sound file."""

    @abstractmethod
    def close(self) -> None:
        """Give what is open back. Reading again opens it again."""


class StoredFile(StoredArrays):
    """The arrays of one cache file. It pickles without the file, which is opened again where it is needed."""

    def __init__(self, path: Path, trailer: Trailer, contents: Contents, file: ReadableFile | None = None) -> None:
        self.path = path
        self.trailer = trailer
        self.contents = contents
        self._file = file

    @classmethod
    def open(cls, path: Path, format: str = FORMAT) -> StoredFile:
        """Open and check a file of that format. Raises CacheNotFound, CacheForeign, CacheDamaged."""
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
    def nbytes(self) -> int:
        return self.trailer.file_bytes

    @property
    def table_names(self) -> tuple[str, ...]:
        return tuple(self.trailer.tables)

    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        place = self.place(name)
        return read_rows(self.opened(), place.offset, rows, place.shape[1:], place.dtype, out)

    def read_table(self, name: str) -> npt.NDArray[Any]:
        place = self.place(name)
        table = read_array(self.opened(), place.offset, place.shape, place.dtype)
        if table_digest(table) != self.trailer.tables[name]:
            raise damaged(self.path, f"the table {name} does not match its digest")
        table.flags.writeable = False
        return table

    def padding(self) -> Iterator[tuple[int, bytes]]:
        places = sorted((place for place in self.contents.arrays.values() if place.nbytes), key=lambda one: one.offset)
        trailer_offset = self.trailer.file_bytes - len(self.trailer.to_bytes())
        start = self.trailer.header_bytes
        for begin, end in [*((one.offset, one.offset + one.nbytes) for one in places), (trailer_offset, 0)]:
            yield start, bytes(self.opened().read(start, max(0, begin - start)))
            start = end

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.trailer, self.contents))

    def opened(self) -> ReadableFile:
        """The file, opened again where it was closed. Raises CacheNotFound where it has been replaced."""
        # No lock, for a fork could inherit it locked: two threads may both open, and the second file stays.
        file = self._file
        if file is None:
            self._file = file = _reopened(self.path, self.trailer)
        return file


def _contents(file: ReadableFile, trailer: Trailer) -> Contents:
    # Only opening a cache needs libhdf5; workers that are handed one do without.
    from featcache.cache.inspection import read_header

    header = bytes(file.read(0, trailer.header_bytes))
    if table_digest(header) != trailer.header_digest:
        raise damaged(file.path, "its header does not match its digest")
    try:
        contents = read_header(header, file.size)
        _require_agreement(contents, trailer)
    except CacheOutdated as error:
        raise CacheOutdated(str(file.path)) from error
    except CacheForeign as error:
        raise untrusted(file.path, error) from error
    return contents


def untrusted(path: Path, error: CacheForeign) -> CacheForeign:
    """The error for a file whose seal is right and whose contents are not a cache's."""
    return CacheForeign(f"{path} is not to be trusted: {error.message}", hint=error.hint)


def _require_format(path: Path, contents: Contents, format: str) -> None:
    if contents.format != format:
        raise CacheForeign(f"{path} is a file of the format {contents.format}, expected {format}")


def info_of(contents: Contents) -> FileInfo:
    """What a file says of itself, read from its root attributes. Raises CacheForeign, CacheOutdated."""
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
        skipped=skipped_of(texts),
    )


def skipped_of(texts: Mapping[str, str]) -> tuple[Skipped, ...]:
    """The images that were left out, as the root attribute `skipped` has them. Raises CacheForeign."""
    try:
        return tuple(Skipped(**one) for one in read_json(texts, "skipped", list))
    except TypeError as error:
        raise CacheForeign(f"its attribute skipped is none that featcache wrote: {error}") from error


def _require_agreement(contents: Contents, trailer: Trailer) -> None:
    """Raises CacheForeign unless attributes, arrays and trailer tell one story."""
    info, rows = info_of(contents), rows_in(contents.arrays.values())
    _require_arrays(contents, info, rows)
    if trailer.about != info.about(rows) or set(trailer.tables) != set(filter(is_table, contents.arrays)):
        raise CacheForeign("its trailer speaks of another cache than its header")


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


def _reopened(path: Path, trailer: Trailer) -> ReadableFile:
    file = open_cache(path)
    try:
        found = read_trailer(file)
    except BaseException:
        file.close()
        raise
    if found != trailer:
        file.close()
        raise CacheNotFound(
            f"{path} is not the file that was opened here before: it has been replaced", hint="open the cache again"
        )
    return file
