"""Opens and reads regular files only: never a pipe, a device, a socket or a folder."""

from __future__ import annotations

import os
import stat
from typing import Final

from featcache.errors import ImageError, SourceError
from featcache.images.formats import HEAD_BYTES, READ, format_of

MAX_FILE_BYTES: Final = 256 * 2**20
"""Larger encoded files are refused: an image of `decoding.MAX_PIXELS` pixels is smaller when compressed."""

UNSEEN_BYTES: Final = 16 * 2**20
"""For larger files the first bytes are checked before the rest is read."""

# Without O_NONBLOCK, opening a named pipe called x.jpg would block. Windows has only O_BINARY of these flags.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first bytes (HEAD_BYTES of them, or all) are those of a supported format."""
    return format_of(head) is not None


def open_regular(path: str | os.PathLike[str], name: str, *, error: type[SourceError] = ImageError) -> int:
    """Open a regular file for reading, without blocking.

    Args:
        path: The file; links are followed.
        name: The name of the file in messages.
        error: The type of the error.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        ImageError: (or `error`) The file is missing, not readable, or not a regular file.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except ValueError as fault:
        raise error(f"{name}: cannot be read: {fault}") from fault
    except OSError as fault:
        # Sockets, and folders on some systems, cannot be opened, and the system's message does not say why.
        _refuse_irregular(_mode(path), name, error)
        raise error(f"{name}: cannot be read: {fault.strerror or fault}") from fault
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, name, error)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], name: str, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read an encoded image from a regular file. The size is checked before anything is read.

    Args:
        path: The file; links are followed.
        name: The name of the file in messages.
        most_bytes: Larger files are refused.

    Returns:
        All bytes of the file.

    Raises:
        ImageError: The file is missing, not readable, not a regular file, too large, changes its size while it is
            read, or is larger than UNSEEN_BYTES and does not begin like an image.
    """
    descriptor = open_regular(path, name)
    try:
        size = os.fstat(descriptor).st_size
        if size > most_bytes:
            raise ImageError(f"{name}: {size:,} bytes, at most {most_bytes:,} are read")
        return _whole(descriptor, size, name)
    except OSError as fault:
        raise ImageError(f"{name}: cannot be read: {fault.strerror or fault}") from fault
    finally:
        os.close(descriptor)


def _whole(descriptor: int, size: int, name: str) -> bytes:
    chunks = [_read_head(descriptor, size, name)] if size > UNSEEN_BYTES else []
    total = sum(map(len, chunks))
    # Request one byte more than the size: if it comes, the file is growing.
    while chunk := os.read(descriptor, size - total + 1):
        chunks.append(chunk)
        total += len(chunk)
        if total > size:
            raise ImageError(f"{name}: grows while it is read", hint="wait until the file is complete")
    if total < size:
        raise ImageError(f"{name}: shrinks while it is read: expected {size:,} bytes, got {total:,}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _read_head(descriptor: int, size: int, name: str) -> bytes:
    head = os.read(descriptor, HEAD_BYTES)
    if not looks_like_image(head):
        raise ImageError(f"{name}: {size:,} bytes and not an image (first bytes {head[:8].hex(' ')})", hint=READ)
    return head


def _refuse_irregular(mode: int | None, name: str, error: type[SourceError]) -> None:
    if mode is not None and not stat.S_ISREG(mode):
        kind = next((words for test, words in _KINDS if test(mode)), "something else")
        raise error(f"{name}: not a regular file but {kind}", hint="give a file")


def _mode(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - as `os.open` takes it
    except OSError:
        return None
