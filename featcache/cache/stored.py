"""A cache file that was opened, checked and can be read at offsets: by threads, forked children, other processes.

Opening checks the trailer, the exact size and the header's digest before libhdf5 sees the header, and then that
attributes, arrays and trailer tell one story. After that no handle of libhdf5 is left.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import table_digest
from featcache.cache.layout import ArrayPlace, Contents, arrays_of, is_table, parse_name, read_json
from featcache.cache.rows import Rows, read_array, read_rows
from featcache.cache.spec import Json, Selection, Spec
from featcache.cache.trailer import Trailer, damaged, open_cache, read_trailer
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
    def open(cls, path: Path) -> StoredFile:
        """Open and check. Raises CacheNotFound, CacheForeign, CacheDamaged."""
        file = open_cache(path)
        try:
            trailer = read_trailer(file)
            return cls(path, trailer, _contents(file, trailer), file)
        except BaseException:
            file.close()
            raise

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


def _require_agreement(contents: Contents, trailer: Trailer) -> None:
    spec = Spec.from_json(contents.texts["spec"])
    rows = {name.split("/")[0]: place.shape[0] for name, place in contents.arrays.items() if name.endswith("/labels")}
    _require_arrays(contents, spec, rows)
    told: Mapping[str, Json] = {
        "rows": rows,
        "set_name": contents.texts["set_name"],
        "spec": json.loads(spec.to_json()),
        "selection": json.loads(Selection.from_json(contents.texts["selection"]).to_json()),
        "skipped": len(read_json(contents.texts, "skipped", list)),
        "created": read_json(contents.texts, "provenance", dict).get("created"),
    }
    if trailer.about != told or set(trailer.tables) != set(filter(is_table, contents.arrays)):
        raise CacheForeign("its trailer speaks of another cache than its header")


def _require_arrays(contents: Contents, spec: Spec, rows: Mapping[str, int]) -> None:
    id_bytes = {split: _id_bytes(contents, split) for split in rows}
    expected = {place.name: (place.shape, place.dtype) for place in arrays_of(spec, rows, id_bytes)}
    got = {name: (place.shape, place.dtype) for name, place in contents.arrays.items()}
    for name in sorted({*expected, *got}):
        if expected.get(name) != got.get(name):
            raise CacheForeign(f"{name}: expected {expected.get(name)}, got {got.get(name)}")
    for name, attributes in contents.features.items():
        layer = spec.layer(parse_name(name)[1])
        if attributes.shape != layer.shape:
            raise CacheForeign(f"{name}: expected features of shape {layer.shape}, got {attributes.shape}")


def _id_bytes(contents: Contents, split: str) -> int:
    place = contents.arrays.get(f"{split}/ids")
    return 1 if place is None else np.dtype(place.dtype).itemsize


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
