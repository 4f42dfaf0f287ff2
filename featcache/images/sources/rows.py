"""What a table of images hands out: encoded images and labels by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.errors import ImageError
from featcache.images.source import Stamp


class ImageRows(ABC):
    """Rows of one split. Picklable; reading is safe from several threads and after a fork."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self) -> Sequence[Any]:
        """The label of each row: a number, a name, or None."""

    @abstractmethod
    def read(self, number: int, sample_id: str) -> bytes:
        """The encoded image of a row. Raises ImageError naming the sample."""

    @abstractmethod
    def stamp(self, number: int) -> Stamp | None:
        """A cheap key that changes when the row does; None: read it."""

    def modified_ns(self, number: int) -> int | None:
        """When the file behind the stamp was last written (ns since 1970), where the stamp rests on that."""
        return None


def encoded(value: Any, sample_id: str) -> bytes:
    """What a cell holds: bytes, or {"bytes", "path"}, of which the path counts where bytes are None.

    Raises ImageError for an empty cell, or a file that cannot be read.
    """
    found = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(found, bytes):
        return found
    path = value.get("path") if isinstance(value, dict) else None
    if not path:
        raise ImageError(f"{sample_id}: the row holds no image")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{sample_id}: {path} cannot be read: {error.strerror or error}") from error


class HubRows(ImageRows):
    """A table of the package datasets: memory-mapped, so rows are read one by one."""

    def __init__(self, table: Any, *, images: str, labels: str | None) -> None:
        self._labels = [None] * len(table) if labels is None else _column(table, labels)
        self._fingerprint = str(table._fingerprint)
        pictures = table.select_columns([images])
        if type(pictures.features[images]).__name__ == "Image":
            pictures = pictures.cast_column(images, type(pictures.features[images])(decode=False))
        self._table, self._images = pictures, images
        # Files that rows only point to may change behind the table's back.
        self._whole = all(isinstance(_bytes_of(pictures[n][images]), bytes) for n in (0, len(table) - 1))

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> Sequence[Any]:
        """Numbers, names or None."""
        return self._labels

    def read(self, number: int, sample_id: str) -> bytes:
        """The cell's bytes, or those of the file it points to."""
        return encoded(self._table[number][self._images], sample_id)

    def stamp(self, number: int) -> Stamp | None:
        """("hf", the table's fingerprint, the row), where images lie in the table itself."""
        return ("hf", self._fingerprint, number) if self._whole else None


def _bytes_of(value: Any) -> Any:
    return value.get("bytes") if isinstance(value, dict) else value


def _column(table: Any, name: str) -> list[Any]:
    found: list[Any] = table.select_columns([name]).with_format("arrow")[:].column(0).to_pylist()
    return found
