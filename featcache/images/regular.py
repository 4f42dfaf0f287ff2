"""One way to open, and to read whole, what must be a regular file: never a pipe, a device, a socket or a folder."""

from __future__ import annotations

import os
import stat
from typing import Final

from featcache.errors import ImageError, SourceError
from featcache.images.formats import HEAD_BYTES, READ, format_of

MAX_FILE_BYTES: Final = 256 * 2**20
"""Larger encoded files are refused: no image of `decoding.MAX_PIXELS` needs as much once it is compressed."""

UNSEEN_BYTES: Final = 16 * 2**20
"""Of larger files the first bytes are looked at before the others are read."""

# Without O_NONBLOCK a named pipe called x.jpg would be waited for. Windows has only O_BINARY of these.
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first bytes (HEAD_BYTES of them, or all) are those of a format that is read."""
    return format_of(head) is not None


def open_regular(path: str | os.PathLike[str], name: str, *, error: type[SourceError] = ImageError) -> int:
    """A descriptor of a regular file, open for reading and to be closed by the caller. Never waits.

    Args:
        path: the file; links are followed.
        name: what messages call it.
        error: what is raised.

    Raises:
        ImageError: (or `error`) it is missing, not permitted, or no regular file.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except ValueError as fault:
        raise error(f"{name}: cannot be read: {fault}") from fault
    except OSError as fault:
        # A socket cannot be opened at all, nor a folder on some systems: the system's words say something else.
        _refuse_irregular(_mode(path), name, error)
        raise error(f"{name}: cannot be read: {fault.strerror or fault}") from fault
    try:
        _refuse_irregular(os.fstat(descriptor).st_mode, name, error)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | os.PathLike[str], name: str, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """An encoded image's bytes, from a regular file. Its size counts before any of it is read.

    Args:
        path: the file; links are followed.
        name: what messages call it.
        most_bytes: larger files are refused.

    Raises:
        ImageError: it is missing, not permitted, no regular file, too large, changes its size while it is read, or is
            larger than UNSEEN_BYTES and begins like no image.
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
    chunks = [_checked_head(descriptor, size, name)] if size > UNSEEN_BYTES else []
    total = sum(map(len, chunks))
    # One byte more than there should be: where it comes, the file is growing.
    while chunk := os.read(descriptor, size - total + 1):
        chunks.append(chunk)
        total += len(chunk)
        if total > size:
            raise ImageError(f"{name}: grows while it is read", hint="wait until it is written")
    if total < size:
        raise ImageError(f"{name}: shrinks while it is read: expected {size:,} bytes, got {total:,}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _checked_head(descriptor: int, size: int, name: str) -> bytes:
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
