"""Reads the headers of a plain tar one by one, and validates each before memory is allocated for it.

tarfile reads as many bytes as a header declares and follows headers by recursion, so a few malicious bytes cause a
MemoryError, a RecursionError or an endless loop. Here a member must be within the file, its extensions (GNU long
names, POSIX "pax" records) must be small and few, and every step moves forward. Only the needed fields are parsed:
tarfile takes nearly twice as long, and a million samples of WebDataset are three million headers.
"""

from __future__ import annotations

import itertools
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from featcache.errors import SourceError
from featcache.images.shared_file import SharedFile

BLOCK: Final = tarfile.BLOCKSIZE
# Name, size, checksum, kind, target of a link, first folders of the name.
_FIELDS: Final = struct.Struct("100s24x12s12x8sc100s88x155s12x")
_ENCODING: Final = ("utf-8", "surrogateescape")
# A path has at most 4,096 bytes; records may also contain attributes that are not needed here.
_MOST_EXTENSION_BYTES: Final = 1 << 20
# Writers put at most four before a member: global records, its own records, a long name, a long link target.
_MOST_EXTENSIONS: Final = 16
_LONG_NAMES: Final = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_RECORDS: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORD: Final = re.compile(rb"([0-9]{1,19}) ([^=]+)=")
_SPARSE_PREFIX, _SPARSE_NAME, _SPARSE = b"GNU.sparse.", "GNU.sparse.name", "sparse"
_KNOWN: Final = {b"path": "path", b"linkpath": "linkpath", b"size": "size", b"GNU.sparse.name": _SPARSE_NAME}
_SIZE: Final = re.compile(r"[0-9]{1,19}")
_MORE_HOLES: Final = {"header": 482, "extension": 504}


class TarHeader(NamedTuple):
    """One member: its name and kind, the target of a link, and the offset and size of its bytes."""

    name: str
    kind: bytes
    link: str
    offset: int
    size: int
    has_holes: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, which may have holes."""
        return self.kind in tarfile.REGULAR_TYPES

    @property
    def is_link(self) -> bool:
        """Whether it is a hard or a symbolic link."""
        return self.kind in (tarfile.LNKTYPE, tarfile.SYMTYPE)


def tar_headers(file: SharedFile, path: Path) -> Iterator[TarHeader]:
    """Iterate over the members of the tar at `path`, in order; headers that only extend another are merged into it.

    Raises SourceError for a tar that is damaged, or declares impossible sizes.
    """
    walk = _Walk(file, path)
    while (header := walk.next_member()) is not None:
        yield header


class RawHeader(NamedTuple):
    """The fields of one header block, not validated."""

    name: str
    kind: bytes
    size: int
    link: str


def parse_header(block: bytes) -> RawHeader:
    """Parse one header of 512 bytes. Raises tarfile.HeaderError if it is not a header, or its checksum is wrong."""
    if len(block) != BLOCK:
        raise tarfile.HeaderError("a header is truncated")
    name, size, checksum, kind, link, folders = _FIELDS.unpack(block)
    if _number(checksum) != sum(block) - sum(checksum) + 8 * ord(" "):
        # Some old writers summed signed bytes; tarfile knows.
        tarfile.TarInfo.frombuf(block, *_ENCODING)
    text = _text(name)
    if kind == tarfile.AREGTYPE and text.endswith("/"):
        kind = tarfile.DIRTYPE
    if kind == tarfile.DIRTYPE:
        text = text.rstrip("/")
    if folders[0] and kind not in tarfile.GNU_TYPES:
        text = f"{_text(folders)}/{text}"
    return RawHeader(text, kind, _number(size), _text(link))


def _number(field: bytes) -> int:
    """Octal digits, or binary where the first byte is 0x80 (0xff: negative), as GNU tar writes large ones."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise tarfile.HeaderError("a number cannot be read") from error


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(*_ENCODING)


class _Walk:
    """The position of the next header, and the values of global records."""

    def __init__(self, file: SharedFile, path: Path) -> None:
        self._file, self._path = file, path
        self._file_size = file.stat().st_size
        self._at = 0
        self._common: dict[str, str] = {}

    def next_member(self) -> TarHeader | None:
        """Read the next member; None at the end mark."""
        extended: dict[str, str] = {}
        for count in itertools.count():
            if count > _MOST_EXTENSIONS:
                self._fail(f"more than {_MOST_EXTENSIONS} headers extend one member")
            block = self._read(BLOCK, self._at)
            if block == bytes(BLOCK):
                return None
            header = self._parse(block)
            if header.kind not in _LONG_NAMES and header.kind not in _RECORDS:
                return self._member(header, block, self._common | extended)
            self._extend(header, extended)
        return None

    def _read(self, size: int, at: int) -> bytes:
        try:
            content = self._file.read_at(size, at)
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if len(content) < size:
            self._fail("no end mark")
        return content

    def _parse(self, block: bytes) -> RawHeader:
        try:
            return parse_header(block)
        except tarfile.HeaderError as error:
            raise SourceError(f"{self._where()}: neither a member nor an end mark: {error}") from error

    def _require_space(self, size: int, offset: int) -> None:
        left = max(0, self._file_size - offset)
        if not 0 <= size <= left:
            self._fail(f"a member of {size:,} bytes is declared, and {left:,} bytes are left")

    def _extend(self, header: RawHeader, extended: dict[str, str]) -> None:
        self._require_space(header.size, self._at + BLOCK)
        if header.size > _MOST_EXTENSION_BYTES:
            self._fail(f"a header's extension of {header.size:,} bytes, at most {_MOST_EXTENSION_BYTES:,} are read")
        body = self._read(header.size, self._at + BLOCK)
        if header.kind in _LONG_NAMES:
            extended[_LONG_NAMES[header.kind]] = _text(body)
        else:
            (self._common if header.kind == tarfile.XGLTYPE else extended).update(self._records(body))
        self._at += BLOCK + _blocks(header.size)

    def _records(self, body: bytes) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(body) and body[at]:
            match = _RECORD.match(body, at)
            end = at + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
                self._fail("a record of a header cannot be read")
            if match[2].startswith(_SPARSE_PREFIX):
                yield _SPARSE, "yes"
            if match[2] in _KNOWN and match.end() < end - 1:
                yield _KNOWN[match[2]], body[match.end() : end - 1].decode(*_ENCODING)
            at = end

    def _member(self, header: RawHeader, block: bytes, extended: dict[str, str]) -> TarHeader:
        is_sparse = header.kind == tarfile.GNUTYPE_SPARSE
        offset = self._at + BLOCK + (self._map_bytes(block) if is_sparse else 0)
        size = self._size(header, extended)
        name = extended.get(_SPARSE_NAME) or extended.get("path") or header.name
        link = extended.get("linkpath") or header.link
        found = TarHeader(name, header.kind, link, offset, size, is_sparse or _SPARSE in extended)
        # Folders and links have no bytes, whatever size they declare; members of unknown kinds do.
        if found.is_file or header.kind not in tarfile.SUPPORTED_TYPES:
            self._require_space(size, offset)
            self._at = offset + _blocks(size)
        else:
            self._at = offset
        return found

    def _size(self, header: RawHeader, extended: dict[str, str]) -> int:
        text = extended.get("size")
        if text is not None and not _SIZE.fullmatch(text):
            self._fail(f"expected a size in digits, got {text[:40]!r}")
        return header.size if text is None else int(text)

    def _map_bytes(self, block: bytes) -> int:
        """The size in bytes of the further blocks that list the holes of an old GNU member."""
        at, more = self._at + BLOCK, block[_MORE_HOLES["header"]]
        while more:
            more = self._read(BLOCK, at)[_MORE_HOLES["extension"]]
            at += BLOCK
        return at - self._at - BLOCK

    def _where(self) -> str:
        return f"{self._path}: damaged or truncated tar archive at byte {self._at:,}"

    def _fail(self, reason: str) -> NoReturn:
        raise SourceError(f"{self._where()}: {reason}", hint="pack it again, or copy it again")


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
