"""Which process is writing a cache: advisory, for a file only ever appears whole, and twice is harmless.

Without a lock two extractions of the same cache would do the work twice, and nothing worse. So where a file
system cannot lock, the work goes on without. Readers never lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from featcache.errors import CacheBusy
from featcache.files import system, unwritable

LOCK_SUFFIX = ".lock"
# flock(2), the same everywhere it exists.
_SHARED, _EXCLUSIVE, _NOT_NOW = 1, 2, 4
_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a lock: process, host, and since when (ISO 8601, UTC)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def lock_path(features_dir: Path, cache_name: str) -> Path:
    """The file that a cache's writers lock; it goes when the last one is done."""
    return features_dir / f"{cache_name}{LOCK_SUFFIX}"


@contextlib.contextmanager
def locked(
    features_dir: Path,
    cache_name: str,
    *,
    shared: bool = False,
    wait: bool = True,
    waiting: Callable[[Owner | None], None] | None = None,
) -> Iterator[None]:
    """Hold a cache's lock: exclusively to extract or assemble, `shared` for shards of one extraction.

    Where another process holds it, `waiting` is called once with the owner (None: unknown) and the call waits; with
    wait=False it raises CacheBusy instead. A forked child never holds it, so a dead owner blocks no other. Raises
    CacheUnwritable where the folder cannot be written.
    """
    path = lock_path(features_dir, cache_name)
    if system.flock is None:
        with _locked_elsewhere(path, shared, wait, waiting):
            yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = _acquire(path, _SHARED if shared else _EXCLUSIVE, wait, waiting)
    except OSError as error:
        raise unwritable(path, error) from error
    owner_pid = os.getpid()
    try:
        yield
    finally:
        # A forked child that unwinds through here has closed its copy already.
        if os.getpid() == owner_pid:
            _release(path, fd)


def is_locked(features_dir: Path, cache_name: str) -> bool:
    """Whether a process is writing the cache now. Where that cannot be known: no."""
    try:
        fd = os.open(lock_path(features_dir, cache_name), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(fd, _EXCLUSIVE)
    finally:
        os.close(fd)


def _acquire(path: Path, mode: int, wait: bool, waiting: Callable[[Owner | None], None] | None) -> int:
    while True:
        fd = _opened(path)
        try:
            if not _try(fd, mode):
                _tell(path, _read_owner(fd), wait, waiting)
                waiting = None
                _flock(fd, mode)
            if _is_file(fd, path):
                _write_owner(fd)
                return fd
        except BaseException:
            _close(fd)
            raise
        # Its last owner removed it meanwhile: what is held now is no lock any more.
        _close(fd)


def _tell(path: Path, owner: Owner | None, wait: bool, waiting: Callable[[Owner | None], None] | None) -> None:
    if not wait:
        raise CacheBusy(
            f"{path.name.removesuffix(LOCK_SUFFIX)} is being written by {owner or 'another process'}",
            hint="run it again when they are done, or without --no-wait to wait for them",
        )
    if waiting is not None:
        waiting(owner)


def _try(fd: int, mode: int) -> bool:
    try:
        _flock(fd, mode | _NOT_NOW)
    except BlockingIOError:
        return False
    return True


def _flock(fd: int, mode: int) -> None:
    if system.flock is None:
        return
    try:
        system.flock(fd, mode)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise


def _release(path: Path, fd: int) -> None:
    with contextlib.suppress(OSError):
        # Only the last process may remove it; shards of the same extraction may still hold it.
        if _try(fd, _EXCLUSIVE) and _is_file(fd, path):
            path.unlink()
    _close(fd)


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _write_owner(fd: int) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, json.dumps(owner).encode())


def _read_owner(fd: int) -> Owner | None:
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        values = json.loads(os.read(fd, 4096))
        return Owner(pid=int(values["pid"]), host=str(values["host"]), since=str(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _locked_elsewhere(
    path: Path, shared: bool, wait: bool, waiting: Callable[[Owner | None], None] | None
) -> Iterator[None]:
    """The same where there is no flock: exclusive through filelock; shards go on without."""
    if shared:
        yield
        return
    import filelock

    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            _tell(path, None, wait, waiting)
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


# --- forked children ---------------------------------------------------------------------------------------

_open: set[int] = set()
# No fork may come between opening a lock file and noting it.
_noting = threading.Lock()


def _opened(path: Path) -> int:
    with _noting:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        _open.add(fd)
    return fd


def _close(fd: int) -> None:
    with _noting, contextlib.suppress(OSError):
        _open.discard(fd)
        os.close(fd)


def _close_in_child() -> None:
    # An inherited descriptor would keep the lock alive after its owner's death.
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()
    _noting.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_noting.acquire, after_in_parent=_noting.release, after_in_child=_close_in_child)
