"""Images inside Parquet files, read where they lie: a row group at a time, the last few kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from featcache.errors import ImageError, MissingExtra, SourceError
from featcache.images.source import Stamp
from featcache.images.sources.rows import ImageRows, encoded

# Threads that decode read neighbouring rows: two groups at a time, and what is nearly done.
_HELD: Final = 4


def read_schema(path: Path) -> Any:
    """A Parquet file's Arrow schema. Raises SourceError for another kind of file, MissingExtra without pyarrow."""
    return _opened(path).schema_arrow


def _opened(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra("a Parquet file of images", package="pyarrow", extra="hf") from error
    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise SourceError(f"{path}: no Parquet file: {error}") from error


class ParquetRows(ImageRows):
    """The rows of several files of one schema, file after file.

    Nothing stays open: a row group is read from a file opened for it. Raises SourceError for a file without the
    columns `images` and `labels`.
    """

    def __init__(self, files: Sequence[Path], *, images: str, labels: str | None) -> None:
        self._files, self._images = tuple(files), images
        groups: list[tuple[int, int, int]] = []  # file, row group, rows
        self._labels: list[Any] = []
        for number, file in enumerate(self._files):
            opened = _opened(file)
            _require(opened, [images, *([labels] if labels else [])], file)
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            groups += [(number, group, size) for group, size in enumerate(sizes)]
            found = [None] * sum(sizes) if labels is None else opened.read([labels]).column(0).to_pylist()
            self._labels += found
        self._groups = [(file, group) for file, group, _ in groups]
        self._ends = np.cumsum([0, *(size for *_, size in groups)])
        self._renew()

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> Sequence[Any]:
        """Numbers, names or None."""
        return self._labels

    def read(self, number: int, sample_id: str) -> bytes:
        """The cell's bytes, or those of the file it points to. Raises ImageError."""
        place = self._place(number)
        cell = self._group(place, sample_id)[number - int(self._ends[place])].as_py()
        return encoded(cell, sample_id)

    def stamp(self, number: int) -> Stamp | None:
        """("parquet", size, mtime in ns, inode of the file, the row); None where the file cannot be looked at."""
        found = self._look(number)
        return None if found is None else ("parquet", found.st_size, found.st_mtime_ns, found.st_ino, number)

    def modified_ns(self, number: int) -> int | None:
        """The file's mtime in ns."""
        found = self._look(number)
        return None if found is None else found.st_mtime_ns

    def _look(self, number: int) -> os.stat_result | None:
        try:
            return self._files[self._groups[self._place(number)][0]].stat()
        except OSError:
            return None

    def _place(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right")) - 1

    def _group(self, place: int, sample_id: str) -> Any:
        from pyarrow import ArrowException

        if self._owner != os.getpid():
            # Whoever held the lock at the fork does not exist here.
            self._renew()
        with self._lock:
            if place not in self._held:
                file, group = self._groups[place]
                try:
                    table = _opened(self._files[file]).read_row_group(group, columns=[self._images])
                except (OSError, ArrowException, SourceError) as error:
                    raise ImageError(f"{sample_id}: {self._files[file]} cannot be read: {error}") from error
                self._held[place] = table.column(0)
            self._held.move_to_end(place)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
            return self._held[place]

    def _renew(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_held", "_owner")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._renew()


def _require(opened: Any, columns: Sequence[str], path: Path) -> None:
    there = opened.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise SourceError(f"{path}: no column {missing[0]!r}; it has {', '.join(there)}")
