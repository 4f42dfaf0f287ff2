"""Images in a zip archive: one read per member, straight at its offset."""

from __future__ import annotations

import stat as file_kind
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from featcache.errors import ImageError, SourceError
from featcache.images.shared_file import SharedFile
from featcache.images.source import Sample, Stamp
from featcache.images.sources.archive import ArchiveSource, add_member, member_path, open_file, version_of
from featcache.images.sources.folder import MAX_FILE_BYTES

_HEADER = struct.Struct("<4s5H3I2H")
_NAME_AND_EXTRA_BYTES = 512  # read along with the header; longer ones cost a second read
_ENCRYPTED, _UTF8 = 0x1, 0x800
_MADE_ON_DOS, _MADE_ON_UNIX = 0, 3
_UNICODE_PATH = 0x7075


class ZipMember(NamedTuple):
    """Where a member lies and what it must turn out to be."""

    offset: int
    compressed: int
    size: int
    crc: int
    method: int


class ZipSource(ArchiveSource[ZipMember]):
    """A zip archive; members stored or deflated. A member's CRC and declared size are checked as it is read."""

    def _open(self) -> SharedFile:
        file = open_file(self._path)
        self._version = version_of(file)
        return file

    def _list(self) -> dict[str, ZipMember]:
        members: dict[str, ZipMember] = {}
        for info in self._directory():
            path = member_path(_name(info), self._path)
            if path is not None and not info.is_dir():
                _refuse_unreadable(info, path, self._path)
                member = ZipMember(info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
                add_member(members, path, member, self._path)
        return members

    def _directory(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self._file.file) as archive:
                return archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise SourceError(f"{self._path}: damaged zip archive: {error}") from error

    def _read(self, member: ZipMember, sample_id: str) -> bytes:
        if member.size > MAX_FILE_BYTES or member.compressed > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: {member.size:,} bytes, at most {MAX_FILE_BYTES:,} are read")
        packed = self._packed(member, sample_id)
        content = packed if member.method == zipfile.ZIP_STORED else _inflate(packed, member.size, sample_id)
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise ImageError(f"{sample_id}: damaged in {self._path.name}: size or CRC differ from the directory's")
        return content

    def _packed(self, member: ZipMember, sample_id: str) -> bytes:
        fetched = self._file.read_at(_HEADER.size + _NAME_AND_EXTRA_BYTES + member.compressed, member.offset)
        if len(fetched) < _HEADER.size or not fetched.startswith(b"PK\x03\x04"):
            raise ImageError(f"{sample_id}: damaged in {self._path.name}: no member at its offset")
        *_, name_bytes, extra_bytes = _HEADER.unpack_from(fetched)
        start = _HEADER.size + name_bytes + extra_bytes
        packed = fetched[start : start + member.compressed]
        if len(packed) < member.compressed:
            packed = self._file.read_at(member.compressed, member.offset + start)
        if len(packed) < member.compressed:
            raise ImageError(f"{sample_id}: truncated in {self._path.name}")
        return packed

    def stamp(self, sample: Sample) -> Stamp | None:
        """("zip", CRC-32, size): they stand for the content, wherever the archive lies and whenever it was made."""
        member = self._member(sample)
        return ("zip", member.crc, member.size)


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name; UTF-8 where the archive says so in any of the ways in use, else code page 437."""
    name = info.orig_filename.partition("\0")[0]
    if info.flag_bits & _UTF8 or (name.isascii() and "\\" not in name and not info.extra):
        return name
    raw = name.encode("cp437")
    told = _unicode_path(info.extra, raw)
    if told is not None:
        return told
    if info.create_system == _MADE_ON_UNIX:
        try:
            # Unix tools, macOS's among them, write the file system's UTF-8 without saying so.
            return raw.decode()
        except UnicodeDecodeError:
            return name
    if info.create_system == _MADE_ON_DOS and "/" not in name:
        return name.replace("\\", "/")
    return name


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in the extra field 0x7075 (version, CRC of the plain name, UTF-8), where it belongs to `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        body, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and len(body) > 5:
            version, crc = struct.unpack_from("<BI", body)
            if version == 1 and crc == zlib.crc32(raw):
                return body[5:].decode("utf-8", "replace")
    return None


def _refuse_unreadable(info: zipfile.ZipInfo, path: str, where: Path) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise SourceError(f"{where}: {path} is encrypted", hint="pack it again without a password")
    if file_kind.S_ISLNK(info.external_attr >> 16):
        raise SourceError(f"{where}: {path} is a link", hint="pack it again with the files themselves")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"{where}: {path} is compressed by method {info.compress_type}; stored (0) and deflated (8) are read",
            hint="pack it again with plain `zip`",
        )


def _inflate(packed: bytes, size: int, sample_id: str) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than declared is enough to see that a member is larger than it says.
        content = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise ImageError(f"{sample_id}: damaged in its archive: {error}") from error
    if len(content) > size:
        raise ImageError(f"{sample_id}: unpacks to more than the {size:,} bytes that the archive declares")
    return content
