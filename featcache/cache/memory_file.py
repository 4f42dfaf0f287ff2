"""A file in memory for libhdf5. featcache never lets libhdf5 read or write a cache file on disk."""

from __future__ import annotations

import io
import os
from typing import Any

from h5py import h5f, h5fd, h5p

# Arrays begin on a page, so that a cold random read touches as few pages as it can.
ALIGNMENT = 4096


def access(memory: MemoryFile, alignment: int = 1) -> h5p.PropFAID:
    """The property list with which libhdf5 opens a file in memory; it allocates at multiples of `alignment` bytes."""
    plist = h5p.create(h5p.FILE_ACCESS)
    plist.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    # Closing the file closes what was opened in it, so nothing of libhdf5 outlives a call.
    plist.set_fclose_degree(h5f.CLOSE_STRONG)
    plist.set_alignment(1, alignment)
    plist.set_fileobj_driver(h5fd.fileobj_driver, memory)
    return plist


class MemoryFile(io.RawIOBase):
    """A sparse file in memory: it stores only the pages that were written.

    Args:
        data: The first bytes of the file; what follows them reads as zeros, so libhdf5 sees the header and nothing
            else. None for an empty file.
        end: The size that the file reports, in bytes.
    """

    def __init__(self, data: bytes | None = None, end: int = 0) -> None:
        self._data = data
        self._pages: dict[int, bytearray] = {}
        self._size = end
        self._position = 0

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self._size

    def start(self, count: int) -> bytes:
        """The first `count` bytes."""
        empty = bytes(ALIGNMENT)
        pages = (bytes(self._pages.get(page, empty)) for page in range(-(-count // ALIGNMENT)))
        return b"".join(pages)[:count]

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._position if size is None else size
        return self._size

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._data is None:
            for page, inside, piece in self._pieces(view):
                piece[:] = self._pages.get(page, bytearray(ALIGNMENT))[inside : inside + len(piece)]
        else:
            # libhdf5 reads object headers in steps of 512 bytes, so it may ask for a little more than there is.
            known = self._data[self._position : self._position + len(view)]
            view[:] = known.ljust(len(view), b"\0")
        self._position += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        for page, inside, piece in self._pieces(view):
            self._pages.setdefault(page, bytearray(ALIGNMENT))[inside : inside + len(piece)] = piece
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def _pieces(self, view: memoryview) -> list[tuple[int, int, memoryview]]:
        pieces, done = [], 0
        while done < len(view):
            page, inside = divmod(self._position + done, ALIGNMENT)
            count = min(ALIGNMENT - inside, len(view) - done)
            pieces.append((page, inside, view[done : done + count]))
            done += count
        return pieces
