"""The interface of all sources of images: folders, archives, arrays, tables, named sets.

A source lists its samples once, always in the same order, and reads one encoded file or one array at a time.
It never decodes: `digest` is computed from the same bytes that are decoded afterwards.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from featcache.errors import SourceError
from featcache.images.listing import Listing
from featcache.images.options import SPLITS
from featcache.images.samples import Sample

Pixels = npt.NDArray[np.uint8]
Payload = bytes | Pixels
"""One image as a source reads it: an encoded file, or pixels, uint8 (H, W) or (H, W, C)."""

Stamp = tuple[int | str, ...]
Report = Callable[[str], None]
"""Receives progress messages, one line per call."""


class ImageSource(ABC):
    """Images that can be listed and read. Picklable; reading is thread-safe and works after a fork.

    Attributes:
        name: A short name for the names of caches; only a-z, 0-9, ".", "_" and "-".
        origin: The text that identifies the images: the data set's name, or an absolute path.
        classes: The class names; a sample's label is an index into them. Sorted by code points if they come from
            folders; named sets and arrays keep the order of their labels.
        native_size: (H, W) in pixels if all images are known to have that size, else None.
        columns: Further columns, in the order of the samples; one named `label` if the labels are not classes.
        omissions: What was left out or ignored when the source was listed.
    """

    def __init__(self, *, name: str, origin: str, listing: Listing, native_size: tuple[int, int] | None = None) -> None:
        self.name = slug(name)
        self.origin = origin
        self.classes = listing.classes
        self.native_size = native_size
        self.columns = listing.columns
        self.omissions = listing.omissions
        self._listing = listing

    def splits(self) -> tuple[str, ...]:
        """The splits that have images, in the order of `SPLITS`."""
        return tuple(self._listing.samples)

    def samples(self, split: str) -> Sequence[Sample]:
        """List the samples of one split.

        Args:
            split: `train`, `val` or `test`.

        Returns:
            The samples sorted by id, in the same order on every machine.

        Raises:
            SourceError: The source does not have the split.
        """
        try:
            return self._listing.samples[split]
        except KeyError:
            raise SourceError(
                f"{self.origin} has no split {split!r}", hint=f"it has {', '.join(self.splits())}"
            ) from None

    @abstractmethod
    def read(self, sample: Sample) -> Payload:
        """Read one image, without decoding it.

        Args:
            sample: A sample of this source.

        Returns:
            The encoded file, or pixels, uint8 (H, W) or (H, W, C).

        Raises:
            ImageError: The image is missing or cannot be read; the message names the sample.
        """

    @abstractmethod
    def stamp(self, sample: Sample) -> Stamp | None:
        """A cheap key that changes whenever the bytes of the sample change, so that they need not be read again.

        Args:
            sample: A sample of this source.

        Returns:
            The key: its first item names its basis, the others are only compared. None: there is no such key.
        """

    def mtime_ns(self, sample: Sample) -> int | None:
        """When the file that `stamp` describes was last written.

        A stamp taken within one clock tick of that moment cannot exclude a second write.

        Args:
            sample: A sample of this source.

        Returns:
            Nanoseconds since 1970; None if the stamp does not depend on a time.
        """
        return None

    def close(self) -> None:
        """Close open files, if there are any. Nothing can be read afterwards."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in self._listing.samples.items())
        return f"<{type(self).__name__} {self.origin}: {len(self.classes)} classes, {sizes}>"


def digest(payload: Payload) -> bytes:
    """The SHA-256 of an image as it is read.

    Args:
        payload: An encoded file, or pixels.

    Returns:
        32 bytes: the digest of the file's bytes, or of the dtype, shape and bytes of the pixels.
    """
    if isinstance(payload, np.ndarray):
        header = f"featcache {payload.dtype} {payload.shape}\n".encode()
        return hashlib.sha256(header + payload.tobytes()).digest()
    return hashlib.sha256(payload).digest()


def stamp_of(found: os.stat_result) -> tuple[int, ...]:
    """A key that changes if a file changes: its size, its mtime and ctime in ns, its inode.

    A tool that edits a file in place and restores its mtime cannot restore the ctime.
    """
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def slug(name: str) -> str:
    """Reduce `name` to lower case with only a-z, 0-9, ".", "_" and "-", so that it can be part of a file name."""
    plain = re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")
    return plain or "images"


_ARCHIVE_SUFFIX = re.compile(r"\.(zip|tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)


def has_archive_suffix(name: str) -> bool:
    """Whether a file name has the extension of an archive."""
    return _ARCHIVE_SUFFIX.search(name) is not None


def name_of(path: Path) -> str:
    """The short name of a folder or archive: its last component without the extension of an archive."""
    return slug(_ARCHIVE_SUFFIX.sub("", path.name))


def row_ids(split: str, numbers: Iterable[int], count: int) -> list[str]:
    """Ids such as "train/00012" for rows without a path, with enough digits that sorting by id sorts by number."""
    width = max(5, len(str(max(count - 1, 0))))
    return [f"{split}/{number:0{width}d}" for number in numbers]


def check_splits(found: Mapping[str, object]) -> None:
    """Raises SourceError unless all keys are splits."""
    for split in found:
        if split not in SPLITS:
            raise SourceError(f"unknown split {split!r}", hint=f"splits are {', '.join(SPLITS)}")
