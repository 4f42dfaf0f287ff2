"""Atomic file writes, and reads at a given offset without a file position, on every operating system.

A file is written under `<name>.tmp-<unique>`, with its full size reserved first, then fsynced and renamed. So a file
with its final name is always complete. Where the operating system lacks preadv, pwrite, posix_fallocate or the fsync
of a directory, this module does the same by other means. A draft (`begin_draft`) is a file that has only its temporary
name yet; `is_abandoned` says whether the process that wrote a temporary file has ended. Every call that can fail goes
through `system`, where tests replace it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from featcache.errors import CacheDamaged, CacheUnreadable, CacheUnwritable

Buffer = bytes | bytearray | memoryview
_ZEROS = bytes(1 << 20)
_TMP_NAME = re.compile(r"\.tmp-([0-9a-f]{6})-(\d+)-[0-9a-f]{8}$")
_ABANDONED_AFTER_S = 24 * 3600.0
# One system call takes at most this many buffers.
_BUFFERS_PER_CALL = 1024
_F_FULLFSYNC = 51
# The error numbers of a file system for a call that it does not support.
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass
class System:
    """The calls of the operating system. None: it has no such call."""

    pwrite: Callable[[int, Buffer, int], int] | None
    preadv: Callable[[int, Sequence[memoryview], int], int] | None
    fallocate: Callable[[int, int, int], None] | None
    fsync: Callable[[int], None]
    fsync_folder: Callable[[int], None] | None
    replace: Callable[[str | Path, str | Path], None]
    replaces_open_files: bool


def _full_fsync(fd: int) -> None:
    # On macOS fsync leaves the bytes in the cache of the drive.
    import fcntl

    fcntl.fcntl(fd, _F_FULLFSYNC)


system = System(
    pwrite=getattr(os, "pwrite", None),
    preadv=getattr(os, "preadv", None),
    fallocate=getattr(os, "posix_fallocate", None),
    fsync=_full_fsync if platform.system() == "Darwin" else os.fsync,
    fsync_folder=os.fsync if os.name == "posix" else None,
    replace=os.replace,
    replaces_open_files=os.name == "posix",
)


# --- writing -----------------------------------------------------------------------------------------------


class Draft:
    """A file of known size that is being written under a temporary name in its final folder."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.tmp_path = path.with_name(tmp_name(path.name))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(self.tmp_path, flags, 0o666)

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`. Raises CacheUnwritable."""
        view = memoryview(data).cast("B")
        if offset + len(view) > self.size:
            raise ValueError(f"{self.path.name}: {len(view)} bytes at {offset} do not fit into {self.size}")
        with self._translate_errors():
            self._write_all(view, offset)

    def _write_all(self, view: memoryview, offset: int) -> None:
        while len(view):
            with contextlib.suppress(InterruptedError):
                written = self._write_some(view, offset)
                if written <= 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
                view, offset = view[written:], offset + written

    def _write_some(self, view: memoryview, offset: int) -> int:
        if system.pwrite is not None:
            return system.pwrite(self._fd, view, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        return os.write(self._fd, view)

    def reserve(self) -> None:
        """Claim the full size now, so that a full disk is found before any work is done. Raises CacheUnwritable."""
        if not self.size:
            return
        with self._translate_errors():
            if system.fallocate is None or not self._try_fallocate(system.fallocate):
                os.ftruncate(self._fd, self.size)
                for offset in range(0, self.size, len(_ZEROS)):
                    self._write_all(memoryview(_ZEROS)[: self.size - offset], offset)

    def _try_fallocate(self, fallocate: Callable[[int, int, int], None]) -> bool:
        while True:
            try:
                fallocate(self._fd, 0, self.size)
                return True
            except InterruptedError:
                continue
            except OSError as error:
                # Some network file systems cannot reserve.
                if error.errno in _CANNOT:
                    return False
                raise

    def publish(self) -> None:
        """Sync the file to disk and give it its final name. Raises CacheUnwritable."""
        with self._translate_errors():
            # Not repeated after a failure: the kernel may have dropped the pages, and would then report success.
            system.fsync(self._fd)
            # Even if a signal interrupts the call, the descriptor is closed and the bytes are on the disk.
            with contextlib.suppress(InterruptedError):
                os.close(self._release())
            system.replace(self.tmp_path, self.path)
            fsync_folder(self.path.parent)

    def discard(self) -> None:
        """Close and remove the unfinished file."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._release())
        with contextlib.suppress(OSError):
            self.tmp_path.unlink()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.path, error, needed=self.size) from error

    def _release(self) -> int:
        fd, self._fd = self._fd, -1
        return fd


def begin_draft(path: Path, size: int) -> Draft:
    """Begin the file `path` of `size` bytes and reserve its disk space; the caller publishes or discards it.

    Raises CacheUnwritable where the file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(path, size)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        draft.reserve()
    except BaseException:
        draft.discard()
        raise
    return draft


@contextlib.contextmanager
def publishing(path: Path, size: int) -> Iterator[Draft]:
    """Write a file of `size` bytes, which gets the name `path` when the block ends. After an error it is removed.

    Raises CacheUnwritable where it cannot be written.
    """
    draft = begin_draft(path, size)
    try:
        yield draft
        draft.publish()
    except BaseException:
        draft.discard()
        raise


def publish_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically. Raises CacheUnwritable."""
    with publishing(path, len(data)) as draft:
        draft.write(data, 0)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path at which a library writes the file; it is renamed to `path` when the block ends.

    After an error the file is removed. If the size is known, use `publishing`, which reserves it. Raises
    CacheUnwritable.
    """
    building = path.with_name(tmp_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield building
        fsync_file(building)
        system.replace(building, path)
        fsync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            building.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new temporary folder, which is renamed to `folder` when the block ends.

    After an error it is removed with its files. The caller syncs the files to disk. Raises OSError, also where
    `folder` exists already.
    """
    building = folder.with_name(tmp_name(folder.name))
    building.mkdir(parents=True)
    try:
        yield building
        fsync_folder(building)
        building.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def fsync_file(path: Path) -> None:
    """Sync a file that a library wrote to disk. Raises OSError."""
    with path.open("rb+") as file:
        system.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk, where the operating system supports it."""
    if system.fsync_folder is None:
        return
    fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        system.fsync_folder(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(fd)


def unwritable(path: Path, error: OSError, *, needed: int | None = None) -> CacheUnwritable:
    """The error for a file that could not be written, with a hint what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        space = "" if needed is None else f": it needs {needed:,} bytes, {free_bytes(path.parent):,} are free"
        if error.errno == errno.EFBIG:
            space = f": {needed or 0:,} bytes are more than this process or file system may write to one file"
        return CacheUnwritable(
            f"no space for {path}{space}", hint="free some space, or pass a --data-dir on another disk"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CacheUnwritable(
            f"{path} cannot be written: {error.strerror}",
            hint="allow writing to it, or pass another --data-dir",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT):
        return CacheUnwritable(
            f"{path} cannot be written: expected the folder {path.parent}, found something else ({error.strerror})",
            hint="move the file that is in the way, or pass another --data-dir",
        )
    return CacheUnwritable(
        f"{path} could not be written: {error.strerror or error}",
        hint="an earlier file there is unchanged; try again, and if it fails again, check the disk",
    )


def unreadable(path: Path, error: OSError) -> CacheUnreadable:
    """The error to raise after an OSError while a file was opened or read: CacheUnreadable, with a hint.

    It says nothing about the file's content; wrong bytes are CacheDamaged.
    """
    hints = {
        errno.EACCES: "allow reading it",
        errno.EPERM: "allow reading it",
        errno.EMFILE: "close other files, or raise the limit: ulimit -n",
        errno.ENFILE: "close other programs: the system has too many open files",
    }
    return CacheUnreadable(
        f"{path} cannot be read now: {error.strerror or error}",
        hint=hints.get(error.errno or 0, "try again; if it fails again, check the disk"),
    )


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Convert an OSError of the disk to CacheUnreadable, where it has not been converted before.

    `folder` is named where the error names no file. Errors of connections and pipes are not converted.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise unreadable(Path(os.fsdecode(error.filename or folder)), error) from error


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk of a folder, which need not exist yet; 0 where that is not known."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


# --- unfinished files --------------------------------------------------------------------------------------


def tmp_name(name: str) -> str:
    """A temporary name for the file `name`, unique, with host and pid of this process."""
    return f"{name}.tmp-{_host_tag()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_tmp(path: Path) -> bool:
    """Whether the name is that of an unfinished file."""
    return _TMP_NAME.search(path.name) is not None


def is_abandoned(path: Path, *, now: float) -> bool:
    """Whether no process writes an unfinished file any more.

    Its process has ended on this host; or, where that cannot be known, nothing was written to it for a day. `now` is
    in seconds since the epoch.
    """
    found = _TMP_NAME.search(path.name)
    if found is None:
        return False
    if found[1] == _host_tag() and not is_alive(int(found[2])):
        return True
    try:
        return now - path.stat().st_mtime > _ABANDONED_AFTER_S
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Whether a process of this host exists; True where that cannot be known."""
    if os.name != "posix":
        # Windows' os.kill would end it.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _host_tag() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


# --- reading -----------------------------------------------------------------------------------------------


class ReadableFile:
    """A file that is read at offsets, by several threads at once and by forked children.

    There is no shared position, so no lock is needed. Opening raises FileNotFoundError and other OSErrors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        # Checked first, because opening a pipe would wait for its other end.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytearray:
        """Read `count` bytes from `offset`. Raises CacheDamaged where the file ends too early, CacheUnreadable."""
        data = bytearray(count)
        self.read_into([memoryview(data)], offset)
        return data

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill the byte buffers, one after the other, from `offset` on.

        Raises CacheDamaged where the file ends too early, CacheUnreadable where it cannot be read now.
        """
        for first in range(0, len(buffers), _BUFFERS_PER_CALL):
            some = buffers[first : first + _BUFFERS_PER_CALL]
            wanted = sum(map(len, some))
            if self._read_some(some, offset) != wanted:
                self._read_slowly(some, offset)
            offset += wanted

    def read_each(self, buffers: Sequence[memoryview], offsets: Sequence[int]) -> None:
        """Fill each buffer from its own offset. Raises CacheDamaged as `read_into` does."""
        preadv, fd = system.preadv, self._fd
        for buffer, offset in zip(buffers, offsets, strict=True):
            try:
                # Inlined, because the time of a random read is spent between the system calls.
                whole = preadv is not None and preadv(fd, (buffer,), offset) == len(buffer)
            except OSError:
                whole = False
            if not whole:
                self.read_into([buffer], offset)

    def _read_some(self, buffers: Sequence[memoryview], offset: int) -> int:
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
        if system.preadv is None:
            return self._copy_from_map(buffers, offset)
        try:
            return system.preadv(self._fd, buffers, offset)
        except InterruptedError:
            return 0
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _read_slowly(self, buffers: Sequence[memoryview], offset: int) -> None:
        # A call may return less than requested, after a signal or above 2 GiB.
        for buffer in buffers:
            while len(buffer):
                got = self._read_some([buffer], offset)
                if got <= 0 and offset >= os.fstat(self._fd).st_size:
                    raise CacheDamaged(
                        f"{self.path} ends at byte {os.fstat(self._fd).st_size}, expected more",
                        hint="it was truncated while in use; extract again",
                    )
                buffer, offset = buffer[got:], offset + got

    def _copy_from_map(self, buffers: Sequence[memoryview], offset: int) -> int:
        mapped = self._map
        if mapped is None and self.size:
            self._map = mapped = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        copied = 0
        for buffer in buffers:
            piece = b"" if mapped is None else mapped[offset + copied : offset + copied + len(buffer)]
            buffer[: len(piece)] = piece
            copied += len(piece)
        return copied

    def close(self) -> None:
        """Close the file; it may be closed already."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ReadableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            # At the end of the interpreter the modules that `close` needs may be gone; the system closes the file.
            return
