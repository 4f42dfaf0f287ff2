"""Where shared files lie: the interface of a folder and of a repository of the Hub, and copying with a digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featcache.errors import CacheUnwritable, InvalidOption
from featcache.files import ReadableFile, publishing, unreadable
from featcache.sharing.content import Content
from featcache.sharing.manifest import SharedManifest

PREFIX = "hf:"
_BLOCK_BYTES = 4 << 20
_REPOSITORY = re.compile(r"(datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
#: Called with the number of bytes that were read since the last call.
Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a place: its manifest as it was read (None: it has none), and the size of each file by name."""

    manifest: bytes | None
    sizes: Mapping[str, int]


class Place(Protocol):
    """A folder or a repository.

    Attributes:
        text: What it is called in messages and results.
        address: What others give to `featcache pull`.
    """

    text: str
    address: str

    def read(self) -> Listing:
        """What lies there. Raises SharingError, HubError."""

    def fetch(self, name: str, nbytes: int, to: Path, advance: Advance) -> None:
        """Copy the file `name` of `nbytes` bytes to the new path `to`.

        Raises SharingError, CacheUnwritable, HubError.
        """

    def put(self, content: Content, manifest: SharedManifest, card: str, advance: Advance) -> Published:
        """Publish files, manifest and card at once. Raises SharingError, CacheUnwritable, HubError."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `Place.put` did: whether files were written, the page's address (None: a folder), and remarks."""

    copied: bool
    url: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the Hub as it was written: `hf:ORG/NAME`, `hf:datasets/ORG/NAME`, with `@REVISION`."""

    id: str
    is_dataset: bool
    revision: str | None


def repository_in(text: str) -> Repository | None:
    """The repository that a text with `hf:` names; None for a folder. Raises InvalidOption for another form."""
    if not text.startswith(PREFIX):
        return None
    found = _REPOSITORY.fullmatch(text.removeprefix(PREFIX))
    if found is None:
        raise InvalidOption(
            f"expected hf:ORG/NAME, got {text!r}", hint="hf:ORG/NAME@REVISION pulls a branch, a tag or a commit"
        )
    return Repository(id=found[2], is_dataset=found[1] is not None, revision=found[3])


def copy_file(source: Path, to: Path, nbytes: int, advance: Advance) -> None:
    """Copy `nbytes` bytes to the new file `to`, atomically. Raises CacheUnwritable, CacheUnreadable, CacheDamaged."""
    with _open(source) as file, publishing(to, nbytes) as draft:
        for offset in range(0, nbytes, _BLOCK_BYTES):
            block = file.read(offset, min(_BLOCK_BYTES, nbytes - offset))
            draft.write(block, offset)
            advance(len(block))


def digest_file(path: Path, advance: Advance) -> tuple[int, str]:
    """The size of a file in bytes, and the SHA-256 of its content. Raises CacheUnreadable, CacheDamaged."""
    digest = hashlib.sha256()
    with _open(path) as file:
        for offset in range(0, file.size, _BLOCK_BYTES):
            block = file.read(offset, min(_BLOCK_BYTES, file.size - offset))
            digest.update(block)
            advance(len(block))
        return file.size, digest.hexdigest()


@contextmanager
def naming_place(argument: str) -> Iterator[None]:
    """Hints of files that cannot be written name this argument or option, in place of --data-dir."""
    try:
        yield
    except CacheUnwritable as error:
        error.hint = (error.hint or "").replace("--data-dir", argument) or None
        raise


@contextmanager
def _open(path: Path) -> Iterator[ReadableFile]:
    try:
        file = ReadableFile(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        yield file
    finally:
        file.close()
