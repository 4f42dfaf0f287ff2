"""The trailer: the last bytes of a cache file, with its size and the digests of header and tables.

A trailer is canonical JSON followed by a seal of 40 bytes: the magic number, the format version, the length of the
JSON and a digest of all three. The seal has the same place and form in every version, so that an older featcache can
report "too new" instead of "damaged". Reading a trailer needs neither libhdf5 nor NumPy, so that `ls` is fast.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from featcache.cache.spec import Json, canonical_json
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound, CacheOutdated
from featcache.files import ReadableFile, unreadable

FORMAT = "featcache"
#: The format of the targets file of a cache in segments.
TARGETS_FORMAT = "featcache-targets"
FORMAT_VERSION = 2
MAGIC = b"\x89FEATCAC"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SEAL = struct.Struct("<8sQQ16s")
# One read fetches the whole trailer of nearly every cache.
_FIRST_READ = 1 << 14
_LARGEST = 1 << 26
_MARKER_WITHIN = 1 << 20
_MARKER_FIRST = 1 << 12
_SUPERBLOCK = 48


@dataclass(frozen=True, kw_only=True)
class Trailer:
    """The contents of a trailer.

    Args:
        file_bytes: The exact size of the file.
        header_bytes: The length of the HDF5 header.
        header_digest: The xxh3-128 of the header.
        tables: The xxh3-128 of each small array, by its name in the file.
        about: The values that `ls` shows: format, set name, spec, selection, rows per split, created, skipped.
    """

    file_bytes: int
    header_bytes: int
    header_digest: str
    tables: Mapping[str, str]
    about: Mapping[str, Json]

    def to_bytes(self) -> bytes:
        """The bytes at the end of the file."""
        text = canonical_json(
            {
                "about": self.about,
                "bytes": self.file_bytes,
                "header": {"bytes": self.header_bytes, "xxh3_128": self.header_digest},
                "tables": self.tables,
            }
        ).encode()
        return text + _seal(text, FORMAT_VERSION)


def _seal(text: bytes, version: int) -> bytes:
    return _SEAL.pack(MAGIC, version, len(text), _seal_digest(text, version))


def _seal_digest(text: bytes, version: int) -> bytes:
    return xxhash.xxh3_128_digest(text + struct.pack("<8sQQ", MAGIC, version, len(text)))


def open_cache(path: Path) -> ReadableFile:
    """Open a cache file for reading.

    Raises CacheNotFound where it is missing, CacheForeign where it is no regular file, CacheUnreadable where it cannot
    be opened now.
    """
    try:
        return ReadableFile(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheNotFound(f"there is no cache at {path}", hint="`featcache ls` lists all caches") from error
    except IsADirectoryError as error:
        raise CacheForeign(f"{path} is a folder, expected a cache file") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise CacheForeign(f"{path} is not a regular file, expected a cache file") from error
        raise unreadable(path, error) from error


def read_trailer(file: ReadableFile) -> Trailer:
    """Read the trailer of an open file, and check it against its seal and the exact size of the file.

    Raises:
        CacheDamaged: The file was written by featcache, and is truncated or changed.
        CacheOutdated: It has an earlier format version.
        CacheForeign: It is another file, or has a later format version.
    """
    tail = bytes(file.read(max(0, file.size - _FIRST_READ), min(file.size, _FIRST_READ)))
    magic, version, length, digest = _SEAL.unpack(tail[-_SEAL.size :].rjust(_SEAL.size, b"\0"))
    if magic != MAGIC or length > min(file.size - _SEAL.size, _LARGEST):
        raise _without_trailer(file)
    start = file.size - _SEAL.size - length
    text = (
        bytes(file.read(start, length))
        if length > _FIRST_READ - _SEAL.size
        else tail[-_SEAL.size - length : -_SEAL.size]
    )
    if digest != _seal_digest(text, version):
        raise damage_error(file.path, "its trailer does not match its own digest")
    if version < FORMAT_VERSION:
        raise CacheOutdated(str(file.path))
    if version != FORMAT_VERSION:
        raise CacheForeign(
            f"{file.path} has format version {version}, this featcache knows version {FORMAT_VERSION}",
            hint="install a newer featcache",
        )
    return _parse(file, text, start)


def _parse(file: ReadableFile, text: bytes, start: int) -> Trailer:
    try:
        values: dict[str, Any] = json.loads(text)
        trailer = Trailer(
            file_bytes=int(values["bytes"]),
            header_bytes=int(values["header"]["bytes"]),
            header_digest=str(values["header"]["xxh3_128"]),
            tables={str(name): str(digest) for name, digest in values["tables"].items()},
            about=dict(values["about"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"{file.path}: featcache did not write its trailer ({error})") from error
    if trailer.file_bytes != file.size:
        raise damage_error(file.path, f"it has {file.size:,} bytes, expected {trailer.file_bytes:,}")
    if not 0 < trailer.header_bytes <= start:
        raise CacheForeign(f"{file.path}: a header of {trailer.header_bytes} bytes does not fit into it")
    return trailer


def damage_error(path: Path, what: str) -> CacheDamaged:
    """The error for a file whose bytes are not those that were written."""
    return CacheDamaged(
        f"{path} is damaged: {what}",
        hint=f"`featcache verify {path} --full` lists what is damaged; extracting again repairs it",
    )


def _without_trailer(file: ReadableFile) -> CacheDamaged | CacheForeign:
    head = bytes(file.read(0, min(file.size, _SUPERBLOCK)))
    if not head:
        return damage_error(file.path, "it is empty")
    if _is_cut_short(head, file.size) or _is_ours(file, head):
        return damage_error(file.path, f"it was truncated or changed at its end (it has {file.size:,} bytes)")
    kind = "an HDF5 file that featcache did not write" if head.startswith(HDF5_SIGNATURE) else "not an HDF5 file"
    return CacheForeign(f"{file.path} is {kind}, expected a feature cache")


def _is_ours(file: ReadableFile, head: bytes) -> bool:
    if not head.startswith(HDF5_SIGNATURE):
        return False
    # The name of the format is usually in the first object header: a megabyte is enough, and fast to read.
    return any(FORMAT.encode() in file.read(0, min(file.size, within)) for within in (_MARKER_FIRST, _MARKER_WITHIN))


def _is_cut_short(head: bytes, size: int) -> bool:
    # The superblock of versions 2 and 3 holds the end of the HDF5 file at byte 28.
    if not head.startswith(HDF5_SIGNATURE[: len(head)]):
        return False
    if len(head) < _SUPERBLOCK:
        return True
    return head[8] in (2, 3) and int.from_bytes(head[28:36], "little") > size
