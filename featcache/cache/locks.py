"""Advisory locks between the processes that write a cache.

Files are published whole, so without a lock two extractions of the same cache would do the work twice, and nothing
worse. Where a file system cannot lock, the work continues without a lock. Readers never lock. The library filelock
does the locking.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import CacheBusy
from featcache.files import unwritable

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_SUFFIX = ".lock"
_SHARD = ".shard-"
_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LOOK_EVERY_S = 0.1
# A shard that begins, and `is_locked`, hold the lock for a moment: that does not count as busy.
_PASSING_S, _LOOK_AGAIN_S = 0.5, 0.01
Waiting = Callable[["Owner | None"], None]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lock: its pid, its host, and since when (ISO 8601, UTC)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def lock_path(features_dir: Path, cache_name: str) -> Path:
    """The file that a cache's writers lock; it is removed when the last writer is done."""
    return features_dir / f"{cache_name}{LOCK_SUFFIX}"


@contextlib.contextmanager
def lock_cache(
    features_dir: Path,
    cache_name: str,
    *,
    shared: bool = False,
    wait: bool = True,
    waiting: Waiting | None = None,
) -> Iterator[None]:
    """Hold the lock of a cache while the block runs. A forked child never holds it, so a dead owner blocks no other.

    Args:
        features_dir: The folder of the cache.
        cache_name: Its name.
        shared: Whether other shards of the same extraction may hold it too; else the lock is exclusive.
        wait: Whether to wait while another process holds it.
        waiting: Called once before waiting, with the owner (None: unknown).

    Raises:
        CacheBusy: Another process holds it, and `wait` is False.
        CacheUnwritable: The folder cannot be written.
    """
    path = lock_path(features_dir, cache_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as holding:
            whole = _acquire(path, wait, waiting)
            holding.callback(_release, path, whole)
            if shared:
                # Each shard has a lock of its own: an exclusive lock waits for all of them.
                own = path.with_name(f"{cache_name}{_SHARD}{secrets.token_hex(4)}{LOCK_SUFFIX}")
                mine = _acquire(own, wait, waiting)
                holding.close()
                holding.callback(_release, own, mine)
            else:
                for other in _shards(path):
                    _release(other, _acquire(other, wait, waiting))
            held = holding.pop_all()
    except OSError as error:
        raise unwritable(path, error) from error
    owner_pid = os.getpid()
    try:
        yield
    finally:
        # A forked child that leaves the block holds no lock.
        if os.getpid() == owner_pid:
            held.close()


def is_locked(features_dir: Path, cache_name: str) -> bool:
    """Whether a process is writing the cache now; False where that cannot be known."""
    path = lock_path(features_dir, cache_name)
    try:
        return any(_is_held(one) for one in [path, *_shards(path)] if one.exists())
    except OSError:
        return False


def _shards(path: Path) -> list[Path]:
    name = path.name.removesuffix(LOCK_SUFFIX)
    return sorted(one for one in path.parent.glob(f"*{LOCK_SUFFIX}") if one.name.startswith(f"{name}{_SHARD}"))


def _acquire(path: Path, wait: bool, waiting: Waiting | None) -> BaseFileLock | None:
    """Acquire a lock; None where the file system cannot lock. Raises CacheBusy, OSError."""
    import filelock

    lock = filelock.FileLock(path, thread_local=False)
    try:
        try:
            _retry_interrupted(lambda: lock.acquire(timeout=_PASSING_S, poll_interval=_LOOK_AGAIN_S))
        except filelock.Timeout:
            _report_owner(path, _read_owner(path), wait, waiting)
            _retry_interrupted(lambda: lock.acquire(poll_interval=_LOOK_EVERY_S))
        _write_owner(path)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        return None
    return lock


def _retry_interrupted(call: Callable[[], object]) -> None:
    while True:
        try:
            call()
        except InterruptedError:
            continue
        return


def _release(path: Path, lock: BaseFileLock | None) -> None:
    # Removed while it is held: a waiting process sees that the file is gone, and starts again.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    if lock is not None:
        with contextlib.suppress(OSError):
            lock.release(force=True)


def _is_held(path: Path) -> bool:
    import filelock

    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    _release(path, lock)
    return False


def _report_owner(path: Path, owner: Owner | None, wait: bool, waiting: Waiting | None) -> None:
    if not wait:
        raise CacheBusy(
            f"{path.name.removesuffix(LOCK_SUFFIX).partition(_SHARD)[0]} is being written by "
            f"{owner or 'another process'}",
            hint="run it again when that process is done, or without --no-wait to wait for it",
        )
    if waiting is not None:
        waiting(owner)


def _write_owner(path: Path) -> None:
    owner = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(owner))


def _read_owner(path: Path) -> Owner | None:
    try:
        values = json.loads(path.read_text())
        return Owner(pid=int(values["pid"]), host=str(values["host"]), since=str(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
