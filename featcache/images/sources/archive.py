"""Images inside archives, read in place: no member is ever written to disk, and no name in it is ever opened.

What an archive is, its first bytes say, not its extension. A zip's members and those of an uncompressed tar are
read at their offsets. A compressed tar cannot be read at offsets: it is decompressed once, into a temporary file
without a name that vanishes with the process.
"""

from __future__ import annotations

import re
import zipfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from featcache.errors import ImageError, SourceError
from featcache.images.layout import arrange, is_image
from featcache.images.shared_file import SharedFile
from featcache.images.source import ImageSource, Report, Sample, name_of

Member = TypeVar("Member")

_DRIVE = re.compile("[A-Za-z]:/")


class ArchiveSource(ImageSource, Generic[Member]):
    """An archive laid out as `layout` says, listed by a subclass.

    Raises SourceError for an archive that is damaged, lacks images, has a layout that can be read in two ways,
    or holds what must not be guessed: a name twice, a name that leads out of it, an encrypted image.
    """

    _version: tuple[int, int]  # size and mtime (ns) of the archive when it was opened

    def __init__(self, path: Path, report: Report | None = None) -> None:
        self._path = path.resolve()
        self._report = report
        self._file = self._open()
        try:
            members = self._list()
            layout = arrange(members, str(self._path))
        except BaseException:
            self._file.close()
            raise
        super().__init__(name=name_of(self._path), origin=str(self._path), listing=layout.listing)
        self._members: Mapping[str, Member] = {
            name.removeprefix(layout.prefix): member for name, member in members.items()
        }

    @abstractmethod
    def _open(self) -> SharedFile:
        """The file that members' offsets refer to. Sets `_version`."""

    @abstractmethod
    def _list(self) -> dict[str, Member]:
        """The images among the members, by POSIX path."""

    @abstractmethod
    def _read(self, member: Member, sample_id: str) -> bytes:
        """One member's bytes. May raise OSError."""

    def read(self, sample: Sample) -> bytes:
        """The member's bytes. Raises ImageError where they are damaged, truncated or too many."""
        member = self._member(sample)
        try:
            return self._read(member, sample.id)
        except OSError as error:
            raise ImageError(f"{sample.id}: cannot be read from {self.origin}: {error}") from error

    def _member(self, sample: Sample) -> Member:
        try:
            return self._members[sample.id]
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_file", "_report")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._report = None
        listed = self._version
        self._file = self._open()
        if self._version != listed:
            self._file.close()
            raise SourceError(f"{self._path}: has changed since it was listed", hint="open it again")


def open_file(path: Path) -> SharedFile:
    """`path` for reading at offsets. Raises SourceError."""
    try:
        return SharedFile(path.open("rb", buffering=0))
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror or error}") from error


def version_of(file: SharedFile) -> tuple[int, int]:
    """(size, mtime in ns) of an open file."""
    found = file.look()
    return (found.st_size, found.st_mtime_ns)


def first_bytes(path: Path) -> bytes:
    """The first 512 bytes. Raises SourceError."""
    file = open_file(path)
    try:
        return file.read_at(512, 0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        file.close()


def member_path(name: str, where: Path) -> str | None:
    """A member's name as a clean POSIX path, None where it is no image.

    Raises SourceError for an image's name that leads out of the archive. Reading it would harm nobody, but it is
    no path inside the set.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    path = "/".join(parts)
    leads_out = name.startswith("/") or ".." in parts or _DRIVE.match(path) is not None
    if leads_out and is_image(parts[-1] if parts else ""):
        raise SourceError(f"{where}: the member {name!r} leads out of the archive")
    return path if is_image(path) else None


def add_member(members: dict[str, Member], path: str, member: Member, where: Path) -> None:
    """Add one, refusing a second of the same name: which one is meant cannot be known."""
    if path in members:
        raise SourceError(f"{where}: holds {path} twice", hint="pack it again")
    members[path] = member


def open_archive(path: Path, report: Report | None = None) -> ImageSource:
    """A zip, a tar or a tar compressed with gzip, bzip2 or xz. `report` takes progress in words.

    Raises SourceError for anything else.
    """
    # Both import this module.
    from featcache.images.sources.tar import TarSource, compression_of, is_tar
    from featcache.images.sources.zip import ZipSource

    head = first_bytes(path)
    if compression_of(head) or is_tar(head):
        return TarSource(path, report)
    if head.startswith(b"PK") or zipfile.is_zipfile(path):
        return ZipSource(path, report)
    raise SourceError(
        f"{path}: neither a zip nor a tar archive",
        hint="give a folder, or a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz of class/image or split/class/image",
    )
