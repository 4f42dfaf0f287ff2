"""Locks between writers, which a process that has ended never holds."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache import files
from featcache.cache.locks import Owner, is_locked, lock_cache, lock_path
from featcache.errors import CacheBusy, CacheUnwritable

NAME = "cifar10-vgg16-00000000-00000000"


def in_child(action: Callable[[], int]) -> int:
    """The pid of a forked child that does the action and ends with its status."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action())
        finally:
            os._exit(99)
    return pid


def sleep() -> int:
    time.sleep(60)
    return 0


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def try_lock(folder: Path, *, shared: bool = False) -> int:
    try:
        with lock_cache(folder, NAME, shared=shared, wait=False):
            return 0
    except CacheBusy:
        return 1


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def holder(folder: Path, *, shared: bool = False) -> int:
    """A child that holds the lock until it is killed."""

    def hold() -> int:
        with lock_cache(folder, NAME, shared=shared):
            (folder / f"held-{os.getpid()}").touch()
            time.sleep(60)
        return 0

    pid = in_child(hold)
    until((folder / f"held-{pid}").exists)
    return pid


def test_a_second_process_that_may_not_wait_stops_with_the_owner_in_its_error(tmp_path: Path) -> None:
    with lock_cache(tmp_path, NAME):
        assert is_locked(tmp_path, NAME)
        with pytest.raises(CacheBusy) as caught, lock_cache(tmp_path, NAME, wait=False):
            pytest.fail("both hold it")
        assert f"process {os.getpid()} on " in caught.value.message
        assert NAME in caught.value.message
        assert "--no-wait" in str(caught.value.hint)
    assert not is_locked(tmp_path, NAME)
    assert not list(tmp_path.iterdir())


def test_a_second_process_waits_and_reports_the_owner(tmp_path: Path) -> None:
    owners: list[Owner | None] = []
    got = threading.Event()

    def second() -> None:
        with lock_cache(tmp_path, NAME, waiting=owners.append):
            got.set()

    with lock_cache(tmp_path, NAME):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: bool(owners))
        assert not got.is_set()
    thread.join(20)
    assert got.is_set()
    (owner,) = owners
    assert owner is not None
    assert owner.pid == os.getpid()
    assert owner.since.endswith("+00:00")
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    pid = holder(tmp_path)
    assert try_lock(tmp_path) == 1
    os.kill(pid, signal.SIGKILL)
    status_of(pid)
    assert try_lock(tmp_path) == 0


def test_running_forked_children_of_an_ended_owner_do_not_block(tmp_path: Path) -> None:
    def own_and_fork() -> int:
        with lock_cache(tmp_path, NAME):
            child = in_child(sleep)
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    status_of(in_child(own_and_fork))
    child = int((tmp_path / "child").read_text())
    try:
        # The child releases it first.
        until(lambda: try_lock(tmp_path) == 0)
        assert files.is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    with lock_cache(tmp_path, NAME):
        pid = os.fork()
        if pid:
            assert status_of(pid) == 0
            assert lock_path(tmp_path, NAME).exists()
            assert status_of(in_child(lambda: try_lock(tmp_path))) == 1
    if pid == 0:
        os._exit(0)


def test_a_started_program_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with lock_cache(tmp_path, NAME):
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert try_lock(tmp_path) == 0
    finally:
        program.kill()
        program.wait()


def test_shards_hold_it_together_and_keep_others_out(tmp_path: Path) -> None:
    pids = [holder(tmp_path, shared=True) for _ in range(2)]
    assert try_lock(tmp_path, shared=True) == 0
    assert try_lock(tmp_path) == 1
    os.kill(pids[0], signal.SIGKILL)
    status_of(pids[0])
    assert try_lock(tmp_path) == 1
    os.kill(pids[1], signal.SIGKILL)
    status_of(pids[1])
    assert try_lock(tmp_path) == 0
    assert not lock_path(tmp_path, NAME).exists()


@pytest.mark.parametrize("shared", [False, True])
def test_many_processes_take_turns_and_each_gets_the_lock(tmp_path: Path, shared: bool) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> int:
        for _ in range(10):
            with lock_cache(tmp_path, NAME):
                counter.write_text(str(int(counter.read_text()) + 1))
            with lock_cache(tmp_path, NAME, shared=shared):
                pass
        return 0

    pids = [in_child(count) for _ in range(5)]
    assert [status_of(pid) for pid in pids] == [0] * 5
    assert counter.read_text() == "50"
    assert not lock_path(tmp_path, NAME).exists()


def failing(monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    fcntl = pytest.importorskip("fcntl", reason="needs flock")

    def unable(fd: int, mode: int) -> None:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(fcntl, "flock", unable)


@pytest.mark.parametrize("failure", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_on_a_file_system_that_cannot_lock_the_work_continues_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    failing(monkeypatch, failure)
    with lock_cache(tmp_path, NAME), lock_cache(tmp_path, NAME, wait=False):
        pass
    assert not list(tmp_path.iterdir())


def test_another_failure_of_the_lock_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errno.EIO)
    with pytest.raises(CacheUnwritable, match="Input/output"), lock_cache(tmp_path, NAME):
        pytest.fail("it was held")


def test_an_extraction_waits_for_every_shard_that_has_begun(tmp_path: Path) -> None:
    got = threading.Event()

    def whole() -> None:
        with lock_cache(tmp_path, NAME):
            got.set()

    with lock_cache(tmp_path, NAME, shared=True), lock_cache(tmp_path, NAME, shared=True):
        assert is_locked(tmp_path, NAME)
        thread = threading.Thread(target=whole)
        thread.start()
        time.sleep(0.3)
        assert not got.is_set()
    thread.join(20)
    assert got.is_set()
    assert not list(tmp_path.iterdir())


def test_another_cache_with_the_same_beginning_of_its_name_is_not_waited_for(tmp_path: Path) -> None:
    with lock_cache(tmp_path, f"{NAME}.other", shared=True), lock_cache(tmp_path, NAME, wait=False):
        pass


def test_a_folder_that_cannot_hold_a_lock_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("")
    with pytest.raises(CacheUnwritable), lock_cache(tmp_path / "features", NAME):
        pytest.fail("it was held")


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), lock_cache(tmp_path, NAME):
        raise KeyError
    assert try_lock(tmp_path) == 0


def test_unreadable_owner_information_is_no_obstacle(tmp_path: Path) -> None:
    with lock_cache(tmp_path, NAME):
        lock_path(tmp_path, NAME).write_text("not json")
        with pytest.raises(CacheBusy, match="another process"), lock_cache(tmp_path, NAME, wait=False):
            pytest.fail("both hold it")
