"""Images inside archives, read in place: no member is written to disk, and no path in it is opened.

The type of an archive is detected by its first bytes, not by its extension. Members are read at their offsets. A
compressed tar cannot be read at offsets: the error gives the command that decompresses it.
"""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from featcache.columns import ColumnOptions
from featcache.errors import ImageError, SourceError
from featcache.images.image_paths import is_image, reason_left_out
from featcache.images.location import SPLIT_BY_FOLDER, ImagesArgument, Location, OpenOptions, register
from featcache.images.metadata import Tree, is_metadata, list_tree
from featcache.images.omissions import NO_IMAGE
from featcache.images.regular import open_regular
from featcache.images.samples import Sample
from featcache.images.shared_file import SharedFile
from featcache.images.source import ImageSource, name_of
from featcache.images.tables import TableBytes

Member = TypeVar("Member")


class Compression(NamedTuple):
    """A way to compress a tar: its first bytes, its name, the program that decompresses it, and its extensions."""

    magic: bytes
    name: str
    program: str
    suffixes: tuple[str, ...]


_COMPRESSIONS: Final = (
    Compression(b"\x1f\x8b", "gzip", "gzip -dk", (".gz", ".tgz")),
    Compression(b"BZh", "bzip2", "bzip2 -dk", (".bz2", ".tbz2", ".tbz")),
    Compression(b"\xfd7zXZ\x00", "xz", "xz -dk", (".xz", ".txz")),
    Compression(b"\x28\xb5\x2f\xfd", "zstd", "zstd -d", (".zst", ".tzst")),
)

_DRIVE = re.compile("[A-Za-z]:/")


class Version(NamedTuple):
    """The size and times of a file, which change whenever it is written or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int


class ArchiveSource(ImageSource, Generic[Member]):
    """An archive with a folder layout as in `layout`; a subclass lists its members.

    Raises SourceError for an archive that is damaged, has no images, has a layout that can be read in two ways, or
    contains a name twice, an image path that leads out of it, or an encrypted image.
    """

    _version: Version  # of the archive when it was opened

    def __init__(
        self, path: Path, *, split_by_folder: Sequence[str] = (), columns: ColumnOptions | None = None
    ) -> None:
        self._path = path.resolve()
        self._file = self._open()
        tree = Tree()
        try:
            members = self._list(tree)
            prefix, listing = list_tree(
                tree,
                str(self._path),
                split_by_folder=split_by_folder,
                columns=columns,
                read_table=lambda inside: self._table(inside, members[inside]),
            )
        except BaseException:
            self._file.close()
            raise
        super().__init__(name=name_of(self._path), origin=str(self._path), listing=listing)
        self._members: Mapping[str, Member] = {name.removeprefix(prefix): members[name] for name in tree.images}

    def _table(self, name: str, member: Member) -> TableBytes:
        try:
            return TableBytes(name=name, content=self._read(member, name))
        except (OSError, ImageError) as error:
            raise SourceError(f"{self._path}: {name} cannot be read: {error}") from error

    def _open(self) -> SharedFile:
        file = open_file(self._path)
        self._version = version_of(file)
        return file

    @abstractmethod
    def _list(self, tree: Tree) -> dict[str, Member]:
        """List the images and metadata tables by POSIX path, and add them to `tree`."""

    @abstractmethod
    def _read(self, member: Member, sample_id: str) -> bytes:
        """Read the bytes of one member. May raise OSError."""

    def read(self, sample: Sample) -> bytes:
        """Read the member's bytes. Raises ImageError if they are damaged, truncated or too many."""
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

    def mtime_ns(self, sample: Sample) -> int | None:
        """The mtime of the archive in ns."""
        return self._version.mtime_ns

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_file"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        listed = self._version
        self._file = self._open()
        if self._version != listed:
            self._file.close()
            raise SourceError(f"{self._path}: has changed since it was listed", hint="open it again")


def open_file(path: Path) -> SharedFile:
    """Open a regular file for reading at offsets. Raises SourceError, also for a pipe or a device."""
    return SharedFile(io.FileIO(open_regular(path, str(path), error=SourceError)))


def version_of(file: SharedFile) -> Version:
    """The size and times of an open file."""
    status = file.stat()
    return Version(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def first_bytes(path: Path) -> bytes:
    """Read the first 512 bytes. Raises SourceError."""
    file = open_file(path)
    try:
        return file.read_at(512, 0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        file.close()


def member_path(name: str, where: Path, tree: Tree) -> str | None:
    """A member's name as a clean POSIX path, also added to `tree`; None if it is neither an image nor a metadata table.

    Raises SourceError for an image's name that leads out of the archive: reading it would be harmless, but it is not a
    path inside the set.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    path = "/".join(parts)
    leads_out = name.startswith("/") or ".." in parts or _DRIVE.match(path) is not None
    if leads_out and is_image(parts[-1] if parts else ""):
        raise SourceError(f"{where}: the member {name!r} leads out of the archive")
    reason = reason_left_out(path)
    if reason is None:
        tree.images.append(path)
        return path
    if reason == NO_IMAGE and is_metadata(path):
        tree.tables.append(path)
        return path
    if path:
        tree.omissions.add(path, reason)
    return None


def add_member(members: dict[str, Member], path: str, member: Member, where: Path) -> None:
    """Add a member; raises SourceError for a second one of the same name, since the choice would be arbitrary."""
    if path in members:
        raise SourceError(f"{where}: contains {path} twice", hint="pack it again")
    members[path] = member


def refuse_compressed(path: Path, head: bytes) -> None:
    """Raises SourceError, with the command to decompress the file, if its first bytes are those of a compressed one."""
    compression = next((one for one in _COMPRESSIONS if head.startswith(one.magic)), None)
    if compression is not None:
        raise SourceError(
            f"{path}: compressed ({compression.name}), expected a plain tar: only that is read in place",
            hint=f"run `{_command(compression, path)}` and give the tar",
        )


def _command(compression: Compression, path: Path) -> str:
    name = shlex.quote(str(path))
    if path.suffix.lower() in compression.suffixes:
        return f"{compression.program} {name}"
    # The programs refuse a file without their extension, except as a stream.
    return f"{compression.name} -dc {name} > {shlex.quote(str(path.with_suffix('.unpacked.tar')))}"


def open_archive(path: Path, **reading: Any) -> ImageSource:
    """Open a zip or a plain tar. Raises SourceError for anything else, also for a compressed tar."""
    # Both import this module.
    from featcache.images.sources.tar import TarSource, is_tar
    from featcache.images.sources.zip import ZipSource

    head = first_bytes(path)
    refuse_compressed(path, head)
    if is_tar(head):
        return TarSource(path, **reading)
    if head.startswith(b"PK") or zipfile.is_zipfile(path):
        return ZipSource(path, **reading)
    raise SourceError(
        f"{path}: neither a zip nor a tar archive",
        hint="give a folder, or a .zip or .tar of class/image or split/class/image",
    )


def _locate(given: ImagesArgument) -> Location | None:
    return given.at("archive", options=(SPLIT_BY_FOLDER,)) if given.is_text and given.is_file else None


@register("archive", rank=90, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ImageSource:
    return open_archive(Path(location.place), split_by_folder=location.values(SPLIT_BY_FOLDER), columns=opening.columns)
