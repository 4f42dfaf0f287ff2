"""Images in a tar archive, compressed or not."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from featcache.errors import ImageError, SourceError
from featcache.images.shared_file import SharedFile
from featcache.images.source import Report, Sample, Stamp
from featcache.images.sources.archive import (
    ArchiveSource,
    add_member,
    first_bytes,
    member_path,
    open_file,
    version_of,
)
from featcache.images.sources.folder import MAX_FILE_BYTES

_BLOCK = tarfile.BLOCKSIZE
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_COPY_BYTES = 2**20
_SPARE_DISK_BYTES = 256 * 2**20
_MAX_LINK_HOPS = 40
_DAMAGED = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class TarMember(NamedTuple):
    """Where a member's bytes lie in the uncompressed archive."""

    offset: int
    size: int


class TarSource(ArchiveSource[TarMember]):
    """A tar archive. Links to members of the same archive are followed, other links to images are refused.

    A compressed one is decompressed at opening, and once more in every process that a pickle of it reaches.
    """

    def _open(self) -> SharedFile:
        archive = open_file(self._path)
        self._version = version_of(archive)
        compression = compression_of(first_bytes(self._path))
        if compression is None:
            return archive
        archive.close()
        return SharedFile(_decompress(self._path, compression, self._report))

    def _list(self) -> dict[str, TarMember]:
        images: dict[str, TarMember] = {}
        files: dict[str, TarMember] = {}
        links: dict[str, str] = {}
        for info in member_headers(self._file, self._path):
            name = _clean(info.name)
            if info.issym() or info.islnk():
                links[name] = _target(info)
            elif info.isreg():
                path = member_path(info.name, self._path)
                if info.issparse():
                    _refuse_sparse(path, self._path)
                    continue
                files[name] = TarMember(info.offset_data, info.size)
                if path is not None:
                    add_member(images, path, files[name], self._path)
        if any(name.endswith(".cls") for name in files):
            raise SourceError(
                f"{self._path}: holds classes in .cls files, as WebDataset does", hint=f"say wds:{self._path}"
            )
        _add_links(images, files, links, self._path)
        return images

    def _read(self, member: TarMember, sample_id: str) -> bytes:
        if member.size > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: {member.size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        content = self._file.read_at(member.size, member.offset)
        if len(content) < member.size:
            raise ImageError(f"{sample_id}: truncated in {self._path.name}")
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """("tar", archive's size, its mtime in ns, member's offset, its size): a tar knows no digest of members."""
        return ("tar", *self._version, *self._member(sample))

    def modified_ns(self, sample: Sample) -> int | None:
        """The archive's mtime in ns."""
        return self._version[1]


def compression_of(head: bytes) -> str | None:
    """ "gzip", "bzip2", "xz" or "zstd" by a file's first bytes, else None."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def is_tar(head: bytes) -> bool:
    """Whether `head`, 512 bytes, is a tar header whose checksum is right."""
    if head == bytes(_BLOCK):
        # An archive without members is one: "no images" says more than "no archive".
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def refuse_compressed(path: Path) -> None:
    """Raises SourceError unless `path` is a plain tar, whose members can be read at their offsets."""
    head = first_bytes(path)
    compression = compression_of(head)
    if compression is not None:
        raise SourceError(f"{path}: compressed ({compression}), expected a plain tar", hint="decompress it first")
    if not is_tar(head):
        raise SourceError(f"{path}: not a tar archive")


def member_headers(file: SharedFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The header of every member, in the order of the archive. Raises SourceError for one that is damaged."""
    try:
        with tarfile.open(fileobj=file.file, mode="r:", encoding="utf-8") as archive:
            while (info := archive.next()) is not None:
                yield info
                # tarfile keeps every header that it has seen: a gigabyte for a million images.
                vars(archive)["members"].clear()
            end = archive.offset
    except _DAMAGED as error:
        raise SourceError(f"{path}: damaged or truncated tar archive: {error}") from error
    # tarfile takes a bad header for the end: only a block of zeros is one.
    if file.read_at(_BLOCK, end) != bytes(_BLOCK):
        raise SourceError(f"{path}: damaged or truncated tar archive: no end mark at byte {end:,}")


def _refuse_sparse(path: str | None, where: Path) -> None:
    if path is not None:
        raise SourceError(f"{where}: {path} is stored with holes", hint="pack it again without `--sparse`")


def _add_links(images: dict[str, TarMember], files: dict[str, TarMember], links: dict[str, str], where: Path) -> None:
    folders = {str(folder) for path in images for folder in PurePosixPath(path).parents} if links else set()
    for name in links:
        path = member_path(name, where)
        target = _follow(name, links)
        if path is None:
            _refuse_folder_link(name, target, folders, where)
        elif target in files:
            add_member(images, path, files[target], where)
        else:
            raise SourceError(f"{where}: the link {path} leads to no file in it ({target})")


def _refuse_folder_link(name: str, target: str, folders: set[str], where: Path) -> None:
    if target in folders:
        raise SourceError(
            f"{where}: {name} is a link to the folder {target}", hint="pack it again with `tar --dereference`"
        )


def _clean(name: str) -> str:
    return posixpath.normpath(name)


def _target(info: tarfile.TarInfo) -> str:
    """The path in the archive that a link leads to: a hard link names it, a symbolic one starts at its folder."""
    if info.islnk():
        return _clean(info.linkname)
    return _clean(posixpath.join(posixpath.dirname(info.name), info.linkname))


def _follow(name: str, links: dict[str, str]) -> str:
    for _ in range(_MAX_LINK_HOPS):
        if name not in links:
            break
        name = links[name]
    return name


def _decompress(path: Path, compression: str, report: Report | None) -> IO[bytes]:
    """The plain tar in a temporary file that has no name, or loses it when it is closed."""
    if compression == "zstd":
        raise SourceError(f"{path}: zstd is not read", hint="compress it with gzip or xz, or not at all")
    try:
        with contextlib.ExitStack() as opened:
            plain = opened.enter_context(tempfile.TemporaryFile(prefix="featcache-"))
            with _decompressed(path, compression) as packed:
                _copy_tar(packed, plain, path, report)
            # tarfile starts where the file stands; this flushes as well.
            plain.seek(0)
            opened.pop_all()
            return plain
    except _DAMAGED as error:
        raise SourceError(f"{path}: cannot be decompressed ({compression}): {error}") from error


def _decompressed(path: Path, compression: str) -> io.BufferedIOBase:
    if compression == "gzip":
        return gzip.open(path)
    return bz2.open(path) if compression == "bzip2" else lzma.open(path)


def _copy_tar(packed: io.BufferedIOBase, plain: IO[bytes], path: Path, report: Report | None) -> None:
    chunk = packed.read(_COPY_BYTES)
    if not is_tar(chunk[:_BLOCK]):
        raise SourceError(f"{path}: compressed, but no tar archive inside", hint="pack the images as .tar.gz or .zip")
    copied = 0
    while chunk:
        if copied % (64 * _COPY_BYTES) == 0:
            _refuse_full_disk(path, copied)
            if report and copied:
                report(f"decompressing {path.name}: {copied / 2**20:,.0f} MiB")
        plain.write(chunk)
        copied += len(chunk)
        chunk = packed.read(_COPY_BYTES)


def _refuse_full_disk(path: Path, copied: int) -> None:
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < _SPARE_DISK_BYTES:
        raise SourceError(
            f"{path}: decompressed {copied / 2**20:,.0f} MiB of it, then {folder} was nearly full",
            hint="set TMPDIR to a folder with more room, or use an uncompressed tar or a zip, which need none",
        )
