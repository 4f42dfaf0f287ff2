"""After a failure of any disk call, final names hold complete files, no other file is left, and the error is clear."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_samples import a_spec, a_table, an_info, assert_whole, donors_of, make_cache, no_tmp_under, rows_for, tables

from featcache import files
from featcache.cache.segment_draft import SegmentDraft
from featcache.cache.writer import write_packed
from featcache.errors import CacheUnwritable, FeatcacheError
from featcache.files import is_abandoned, is_tmp, publish_bytes, publishing, tmp_name

CALLS = ("pwrite", "fallocate", "fsync", "replace", "fsync_folder")
SEGMENT = a_table("train", 6)
NEW = {"train": a_table("train", 9), "test": a_table("test", 4)}


class FailingDisk:
    """Counts the calls of one kind and fails the n-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, number: int, failure: int) -> None:
        self.count = 0
        real = getattr(files.system, call)

        def count_and_call(*arguments: Any) -> Any:
            self.count += 1
            if self.count == number:
                raise OSError(failure, os.strerror(failure))
            return real(*arguments)

        monkeypatch.setattr(files.system, call, count_and_call)


def outcomes(
    monkeypatch: pytest.MonkeyPatch, call: str, failure: int, action: Callable[[], object]
) -> Iterator[FeatcacheError | None]:
    """Run the action with a failure of its first, second, ... call of that kind, until it has no more such calls."""
    for number in range(1, 1000):
        with monkeypatch.context() as patched:
            disk = FailingDisk(patched, call, number, failure)
            try:
                action()
                error = None
            except FeatcacheError as caught:
                error = caught
        if disk.count < number:
            return
        yield error


@pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_call_leaves_the_old_cache_or_the_complete_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: int
) -> None:
    path = make_cache(tmp_path / "c.h5")
    old, new = path.read_bytes(), make_cache(tmp_path / "other" / "c.h5", split_tables=NEW).read_bytes()
    times = 0
    donors = donors_of(a_spec(), NEW)

    def act() -> None:
        write_packed(path, an_info(), tables=NEW, donors=donors)

    for error in outcomes(monkeypatch, call, failure, act):
        times += 1
        assert isinstance(error, CacheUnwritable)
        assert str(path) in error.message or str(path.parent) in error.message
        assert error.hint
        # Only if syncing the folder failed does the new file have its name already.
        assert path.read_bytes() == (new if call == "fsync_folder" else old)
        path.write_bytes(old)
        assert no_tmp_under(tmp_path)
    assert times >= (10 if call == "pwrite" else 1)
    assert path.read_bytes() == new


@pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_failing_call_leaves_no_segment_or_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: int
) -> None:
    path = tmp_path / "c" / "train-000000000.h5"
    for error in outcomes(monkeypatch, call, failure, lambda: write_segment(path)):
        assert isinstance(error, CacheUnwritable)
        assert no_tmp_under(tmp_path)
        if path.exists():
            assert call == "fsync_folder"
            assert_whole(path, a_spec(), {"train": SEGMENT})
            path.unlink()
    assert_whole(path, a_spec(), {"train": SEGMENT})


@pytest.mark.parametrize("left_out", [0, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_segment_that_was_refused_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, left_out: int
) -> None:
    path = tmp_path / "c" / "train-000000000.h5"
    for error in outcomes(monkeypatch, call, errno.EIO, lambda: write_segment(path, left_out)):
        assert isinstance(error, CacheUnwritable)
        write_segment(path, left_out)
        assert_whole(path, a_spec(), {"train": SEGMENT.take(slice(left_out, None))})
        assert no_tmp_under(tmp_path)


def write_segment(path: Path, left_out: int = 0) -> None:
    """A segment without its first `left_out` rows, so that the others have to be moved."""
    draft = SegmentDraft(path, an_info(), split="train", ids=SEGMENT.ids)
    try:
        for row in range(left_out, len(SEGMENT)):
            draft.put(np.array([row]), rows_for(a_spec(), SEGMENT.digests[row : row + 1]))
        draft.publish(SEGMENT.digests)
    except BaseException:
        draft.discard()
        raise


@pytest.mark.parametrize("call", ["pwrite", "fallocate"])
def test_an_interrupted_call_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    few = {"train": a_table("train", 3)}
    errors = list(outcomes(monkeypatch, call, errno.EINTR, lambda: make_cache(tmp_path / "c.h5", split_tables=few)))
    assert errors
    assert set(errors) == {None}
    assert_whole(tmp_path / "c.h5", a_spec(), few)


def test_a_failed_fsync_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(fd: int) -> None:
        calls.append(fd)
        raise InterruptedError(errno.EINTR, "interrupted")

    monkeypatch.setattr(files.system, "fsync", failing)
    with pytest.raises(CacheUnwritable):
        publish_bytes(tmp_path / "a", b"abc")
    assert len(calls) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(files.system, "pwrite", lambda fd, data, at: os.pwrite(fd, data[:most], at))
    few = {"train": a_table("train", 3)}
    assert_whole(make_cache(tmp_path / "c.h5", split_tables=few), a_spec(), few)


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.system, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(CacheUnwritable):
        make_cache(tmp_path / "c.h5")
    assert no_tmp_under(tmp_path)


def test_the_error_of_a_full_disk_has_needed_and_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.system, "fallocate", full)
    with (
        pytest.raises(CacheUnwritable, match=r"needs 1,000,000 bytes, [\d,]+ are free") as caught,
        publishing(tmp_path / "a", 1_000_000),
    ):
        pytest.fail("the work had begun")
    assert "--data-dir" in str(caught.value.hint)


def test_an_error_of_the_caller_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), publishing(tmp_path / "a", 10) as draft:
        draft.write(b"abc", 0)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_draft_cannot_grow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fit"), publishing(tmp_path / "a", 10) as draft:
        draft.write(b"abc", 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "hidden",
    [("pwrite",), ("fallocate",), ("fsync_folder",), ("preadv",), (*CALLS[:2], "fsync_folder", "preadv")],
    ids="+".join,
)
def test_without_a_call_of_the_operating_system_the_same_bytes_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...]
) -> None:
    usual = make_cache(tmp_path / "usual.h5").read_bytes()
    for call in hidden:
        monkeypatch.setattr(files.system, call, None)
    path = make_cache(tmp_path / "c.h5")
    assert path.read_bytes() == usual
    assert_whole(path, a_spec(), tables())


@pytest.mark.parametrize("failure", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_reserve_gets_zeros_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    def unable(fd: int, offset: int, size: int) -> None:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(files.system, "fallocate", unable)
    with publishing(tmp_path / "a", 3_000_000) as draft:
        assert draft.tmp_path.stat().st_blocks * 512 >= 3_000_000
    assert (tmp_path / "a").read_bytes() == bytes(3_000_000)


def test_a_file_system_that_cannot_fsync_a_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(fd: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(files.system, "fsync_folder", unable)
    publish_bytes(tmp_path / "a", b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_an_error_of_the_caller_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), publishing(tmp_path / "a", 10):
        raise BrokenPipeError
    assert not list(tmp_path.iterdir())


def _run_with_file_limit(code: str, limit: int, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run code that may use `folder`, with files limited to `limit` bytes."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}", str(folder)],
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


MAKE = """
from pathlib import Path
from cache_samples import make_cache
from featcache.errors import CacheUnwritable
folder = Path(sys.argv[1])
try:
    make_cache(folder / "c.h5")
except CacheUnwritable as error:
    print(sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name.endswith(("h5", "-*"))))
    print(error.message)
"""


def test_a_limit_on_file_size_is_a_clear_error(tmp_path: Path) -> None:
    done = _run_with_file_limit(MAKE, 20_000, tmp_path)
    names, message = done.stdout.decode().splitlines()
    assert names == "[]"
    assert "more than this process" in message
    assert no_tmp_under(tmp_path)


def test_a_disk_that_is_really_full_is_a_clear_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small tmpfs here")
    try:
        with pytest.raises(CacheUnwritable, match="no space for"):
            make_cache(disk / "c.h5")
        assert no_tmp_under(disk)
        assert not (disk / "c.h5").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _file(place: Path) -> None:
    place.write_text("")


def _dangling(place: Path) -> None:
    place.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_file, _dangling])
def test_something_else_in_the_folders_place_is_a_clear_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "features")
    with pytest.raises(CacheUnwritable, match="features") as caught:
        write_segment(tmp_path / "features" / "train-000000000.h5")
    assert caught.value.hint
    with pytest.raises(CacheUnwritable):
        publish_bytes(tmp_path / "features" / "c.h5", b"abc")


def test_a_folder_in_the_files_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "c.h5" / "inside").mkdir(parents=True)
    with pytest.raises(CacheUnwritable):
        make_cache(tmp_path / "c.h5")
    assert no_tmp_under(tmp_path)
    assert (tmp_path / "c.h5" / "inside").is_dir()


def test_a_dangling_link_in_the_files_place_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "c.h5").symlink_to(tmp_path / "elsewhere")
    make_cache(tmp_path / "c.h5")
    assert not (tmp_path / "elsewhere").exists()
    assert_whole(tmp_path / "c.h5", a_spec(), tables())


def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    folder.chmod(0o555)
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                # Permissions do not stop root.
                tmp_path.chmod(0o755)
                os.chdir(folder)
                os.setuid(65534)
            publish_bytes(Path("c.h5") if Path.cwd() == folder else folder / "c.h5", b"abc")
        except CacheUnwritable as error:
            os._exit(7 if "allow writing" in str(error.hint) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert not list(folder.iterdir())


def test_unfinished_files_of_ended_processes_are_distinguished_from_those_of_running_ones(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        (tmp_path / tmp_name("c.h5")).write_text("half")
        os._exit(0)
    os.waitpid(pid, 0)
    (dead,) = tmp_path.iterdir()
    alive = tmp_path / tmp_name("c.h5")
    alive.write_text("half")
    elsewhere = tmp_path / f"c.h5.tmp-abcdef-{os.getpid()}-00000000"
    elsewhere.write_text("half")
    now = alive.stat().st_mtime
    assert [is_tmp(path) for path in (dead, alive, elsewhere, tmp_path / "c.h5")] == [True, True, True, False]
    assert is_abandoned(dead, now=now)
    assert not is_abandoned(alive, now=now + 3600)
    assert not is_abandoned(elsewhere, now=now + 3600)
    assert is_abandoned(elsewhere, now=now + 90_000)
    assert not is_abandoned(tmp_path / "c.h5", now=now + 90_000)
