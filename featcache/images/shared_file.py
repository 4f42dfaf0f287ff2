"""An open file that many threads, and child processes after a fork, can read at offsets at the same time."""

from __future__ import annotations

import os
import threading
from typing import IO


class SharedFile:
    """Reads at offsets with `os.pread`, which needs no file position; without it, a lock protects the position."""

    def __init__(self, file: IO[bytes]) -> None:
        """`file`: a binary file open for reading. Nothing else may use its position afterwards."""
        self._file = file
        self._lock = threading.Lock()

    def read_at(self, size: int, offset: int) -> bytes:
        """Read `size` bytes from `offset`, fewer only at the end of the file. Raises OSError, also after `close`."""
        chunks = []
        while size > 0 and (chunk := self._read_once(size, offset)):
            chunks.append(chunk)
            size -= len(chunk)
            offset += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _read_once(self, size: int, offset: int) -> bytes:
        if self._file.closed:
            raise OSError("the archive has been closed")
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    @property
    def file(self) -> IO[bytes]:
        """The open file itself, to read for example an archive's directory.

        Only before another thread calls `read_at`: to use it moves the file's position.
        """
        return self._file

    def stat(self) -> os.stat_result:
        """Size and times of the open file."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file; reading raises OSError from now on."""
        self._file.close()
