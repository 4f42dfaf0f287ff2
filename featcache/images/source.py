"""What every source of images promises, whatever lies behind it: a folder, an archive, arrays, a named set.

A source lists its samples once, always in the same order, and reads one encoded file or one array at a time.
It never decodes: `digest` is taken over the very bytes that are decoded afterwards.
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
"""One image as a source hands it out: an encoded file, or uint8 pixels (H, W) or (H, W, C)."""

Stamp = tuple[int | str, ...]
Report = Callable[[str], None]
"""Takes progress in words, one line a call."""


class ImageSource(ABC):
    """Images that can be listed and read. Picklable; reading is safe from several threads and after a fork.

    Attributes:
        name: short, for the names of caches made from it; only a-z, 0-9, ".", "_" and "-".
        origin: what names it in a selection: the data set's name, or an absolute path.
        classes: names; a sample's label is an index into them. Sorted by code points where they come from
            folders; a named set and arrays keep the order that their labels have.
        native_size: (H, W) in pixels when all images are known to have that size, else None.
        columns: What else is known of the images, in the order of their samples; one called `label` where labels
            are no classes.
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
        """The samples of one split in source order: sorted by id, the same on every machine.

        Raises SourceError for a split that the source lacks.
        """
        try:
            return self._listing.samples[split]
        except KeyError:
            raise SourceError(
                f"{self.origin} has no split {split!r}", hint=f"it has {', '.join(self.splits())}"
            ) from None

    @abstractmethod
    def read(self, sample: Sample) -> Payload:
        """The encoded file, or the uint8 pixels, of one sample. Raises ImageError naming the sample."""

    @abstractmethod
    def stamp(self, sample: Sample) -> Stamp | None:
        """A cheap key that changes when the sample's bytes do; None: there is none, read them.

        Its first item says what it rests on, the rest is for comparison only.
        """

    def modified_ns(self, sample: Sample) -> int | None:
        """When the file behind `stamp` was last written (ns since 1970); None where the stamp needs no time.

        A stamp taken within the clock's grain of that moment does not exclude a second write.
        """
        return None

    def close(self) -> None:
        """Let go of open files, where there are any. Nothing can be read afterwards."""
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
    """SHA-256 (32 bytes) of what is decoded: an encoded file's bytes; for pixels their shape and bytes."""
    if isinstance(payload, np.ndarray):
        header = f"featcache {payload.dtype} {payload.shape}\n".encode()
        return hashlib.sha256(header + payload.tobytes()).digest()
    return hashlib.sha256(payload).digest()


def stamp_of(found: os.stat_result) -> tuple[int, ...]:
    """What tells whether a file has changed: its size, its mtime and ctime in ns, its inode.

    A tool that edits a file in place and puts its mtime back cannot put back the ctime.
    """
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def slug(name: str) -> str:
    """`name` in lower case with only a-z, 0-9, ".", "_" and "-", so that it can stand in a file name."""
    plain = re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")
    return plain or "images"


_ARCHIVE_SUFFIX = re.compile(r"\.(zip|tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)


def has_archive_suffix(name: str) -> bool:
    """Whether a file of that name is meant as an archive of images."""
    return _ARCHIVE_SUFFIX.search(name) is not None


def name_of(path: Path) -> str:
    """The short name of a folder or archive: its last component without an archive's suffix."""
    return slug(_ARCHIVE_SUFFIX.sub("", path.name))


def numbered_ids(split: str, numbers: Iterable[int], count: int) -> list[str]:
    """Ids "train/00012" for rows without a path, wide enough that sorting by id sorts by number."""
    width = max(5, len(str(max(count - 1, 0))))
    return [f"{split}/{number:0{width}d}" for number in numbers]


def check_splits(found: Mapping[str, object]) -> None:
    """SourceError unless the keys are splits."""
    for split in found:
        if split not in SPLITS:
            raise SourceError(f"unknown split {split!r}", hint=f"splits are {', '.join(SPLITS)}")
