"""Lets each system call fail in turn; a sample is a test, `python benchmarks/measure.py faults` tries all.

Each action runs in its own child process, forked from a process that has imported everything. In the child, the n-th
call on a file under the data folder fails with EIO, ENOSPC, EINTR or EMFILE, or reads or writes less than requested.
Then checks that:

    - the child ended with success or with an error of featcache, never with another exception;
    - every file with a final name is complete, and no complete file was reported as damaged;
    - the same action, run again without a fault, succeeds and gives the same rows as without any fault.
"""

from __future__ import annotations

import builtins
import errno
import faulthandler
import fcntl
import functools
import io
import itertools
import json
import os
import random
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache import files
from featcache.cache.catalog import describe, garbage, list_caches, remove_garbage
from featcache.cache.manifest import TARGETS_FILES
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheIncomplete, FeatcacheError
from featcache.extraction.execution import Execution
from featcache.extraction.labelling import label
from featcache.extraction.request import Request
from featcache.extraction.run import assemble, extract

SHORT = "short"
OK, REFUSED, CRASHED, KILLED = 0, 1, 2, -signal.SIGKILL
_PATIENCE_S = 30
# By module: functions whose first argument is a path or a file descriptor.
_CALLS: dict[Any, tuple[str, ...]] = {
    os: (
        "open", "pwrite", "write", "preadv", "read", "fsync", "close", "replace", "rename", "unlink", "remove", "mkdir",
        "rmdir", "stat", "lstat", "fstat", "posix_fallocate", "ftruncate", "utime", "scandir", "listdir",
    ),
    io: ("open",),
    builtins: ("open",),
    fcntl: ("flock",),
}  # fmt: skip
# The errors that each call may raise. Python repeats most calls that a signal interrupts; under EINTR stand those that
# it does not always repeat.
_ERRORS: dict[int, set[str]] = {
    errno.EIO: {
        "open", "pwrite", "write", "preadv", "read", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir",
        "scandir", "listdir", "stat", "lstat", "fstat",
    },
    errno.ENOSPC: {"open", "pwrite", "write", "posix_fallocate", "mkdir", "replace", "fsync"},
    errno.EINTR: {"pwrite", "preadv", "posix_fallocate", "close", "flock"},
    errno.EMFILE: {"open", "scandir"},
}  # fmt: skip
_SHORTENED = {"pwrite", "write", "preadv"}


# --- in a child --------------------------------------------------------------------------------------------


class Faults:
    """Counts the calls on files under a folder, and lets one of them fail."""

    def __init__(self, folder: Path, number: int | None, fault: int | str) -> None:
        self.folder, self.number, self.fault = f"{folder.resolve()}{os.sep}", number, fault
        self.count = 0
        self.names: list[str] = []
        self._inside = False

    def install(self) -> None:
        """Replace the system calls in this process."""
        for module, names in _CALLS.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self._wrap(name, getattr(module, name)))
        system = files.system
        for field, name in (
            ("pwrite", "pwrite"), ("preadv", "preadv"), ("fallocate", "posix_fallocate"), ("fsync", "fsync"),
            ("fsync_folder", "fsync"), ("replace", "replace"),
        ):  # fmt: skip
            setattr(system, field, getattr(os, name))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def call_counting(*arguments: Any, **options: Any) -> Any:
            if self._inside or not self._concerns(arguments):
                return call(*arguments, **options)
            self.count += 1
            self.names.append(name)
            if self.count != self.number:
                return call(*arguments, **options)
            return self._failing(name, call, arguments, options)

        return call_counting

    def _concerns(self, arguments: tuple[Any, ...]) -> bool:
        self._inside = True
        try:
            first = arguments[0] if arguments else None
            if type(first) is int:
                return os.readlink(f"/proc/self/fd/{first}").startswith(self.folder)  # noqa: PTH115
            return os.path.abspath(os.fsdecode(first or b"")).startswith(self.folder)  # noqa: PTH100
        except (OSError, TypeError, ValueError):
            return False
        finally:
            self._inside = False

    def _failing(self, name: str, call: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if not fits(name, self.fault):
            # Threads run in another order each time: another call has this number now.
            return call(*arguments, **options)
        if isinstance(self.fault, int):
            if name == "close":
                call(*arguments, **options)
            raise OSError(self.fault, os.strerror(self.fault))
        descriptor, data, *rest = arguments
        if name == "preadv":
            whole = next((buffer for buffer in data if len(buffer)), memoryview(bytearray(1)))
            return call(descriptor, [whole[: max(1, len(whole) // 2)]], *rest)
        return call(descriptor, memoryview(data).cast("B")[: max(1, len(data) // 2)], *rest)


def in_child(
    work: Callable[[], Any], faults: Faults | None = None, kill_after_s: float | None = None
) -> tuple[int, Any]:
    """Run `work` in a forked child; returns its exit code, and the names of its calls or its error.

    A child that has not ended after `kill_after_s` is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        write, leave = os.write, os._exit
        code, answer = CRASHED, ""
        try:
            # A child that hangs is a failure too.
            faulthandler.dump_traceback_later(_PATIENCE_S - 5)
            signal.alarm(_PATIENCE_S)
            if faults is not None:
                faults.install()
            work()
            code, answer = OK, json.dumps(faults.names if faults is not None else [])
        except FeatcacheError as error:
            code, answer = REFUSED, json.dumps(f"{type(error).__name__}: {error.message}")
        except BaseException:
            answer = json.dumps(traceback.format_exc())
        finally:
            data = answer.encode()
            while data:
                data = data[write(writing, data) :]
            leave(code)
    os.close(writing)
    # A child that ends writes its answer, or closes the pipe.
    if kill_after_s is not None and not select.select([reading], [], [], kill_after_s)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(text or "null")


# --- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Action:
    """An action in a data folder. `before`: prepares the data folder, without faults."""

    before: Callable[[Path, Path], object]
    work: Callable[[Path, Path], object]


def _request(images: Path, data_dir: Path) -> Request:
    return Request(dataset=images, backbone="pixels", image_size=8, data_dir=data_dir)


def _extract(images: Path, data_dir: Path) -> None:
    extract(_request(images, data_dir), Execution(segment_rows=8, batch_size=8, workers=1))


def _in_segments(images: Path, data_dir: Path) -> None:
    extract(_request(images, data_dir), Execution(segment_rows=8, batch_size=8, workers=1, pack=False))


def _pack(images: Path, data_dir: Path) -> None:
    assemble(_request(images, data_dir), Execution(pack=True))


def _with_garbage(images: Path, data_dir: Path) -> None:
    _extract(images, data_dir)
    features = data_dir / "features"
    (features / files.tmp_name("left.h5").replace(str(os.getpid()), "4194303")).write_bytes(b"half")
    (features / "gone-pixels-00000000-00000000.used").touch()


def _gc(images: Path, data_dir: Path) -> None:
    with files.disk_errors(data_dir):
        (cache,) = list_caches(data_dir / "features")
        for piece in garbage(data_dir / "features", used=[cache.path], now=time.time()):
            remove_garbage(piece)


def _labels(images: Path) -> Path:
    """A table of every image's number, outside the data folder."""
    table = images.with_name("numbers.csv")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    table.write_text("id,number\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)))
    return table


def _label(images: Path, data_dir: Path) -> None:
    table = _labels(images)
    with files.disk_errors(data_dir):
        (cache,) = list_caches(data_dir / "features")
    label(cache.require_complete(), table)


ACTIONS = {
    "extract": Action(before=lambda *_: None, work=_extract),
    "extract --no-pack": Action(before=lambda *_: None, work=_in_segments),
    "assemble": Action(before=_in_segments, work=_pack),
    "label": Action(before=_extract, work=_label),
    "label in segments": Action(before=_in_segments, work=_label),
    "gc": Action(before=_with_garbage, work=_gc),
}


# --- one fault ---------------------------------------------------------------------------------------------


class WrongEnd(Exception):
    """A check after a fault failed."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Images, a data folder as it is before an action, and the rows that the action gives."""

    images: Path
    before: Path
    expected: bytes

    @classmethod
    def of(cls, action: Action, images: Path, scratch: Path) -> tuple[Context, list[str]]:
        """The context of an action, and the names of the calls that it makes without a fault."""
        before, after = scratch / "before" / "data", scratch / "whole" / "data"
        before.mkdir(parents=True)
        _require_ok(in_child(lambda: action.before(images, before)))
        shutil.copytree(before, after)
        code, calls = in_child(lambda: action.work(images, after), Faults(after, None, SHORT))
        _require_ok((code, calls))
        return cls(images=images, before=before, expected=rows_of(after)), calls


def _require_ok(ended: tuple[int, Any]) -> None:
    if ended[0] != OK:
        raise WrongEnd(f"without a fault it ended with {ended[0]}: {ended[1]}")


def rows_of(data_dir: Path) -> bytes:
    """The rows, ids, digests and targets of the only complete cache."""
    (entry,) = [one for one in list_caches(data_dir / "features") if one.complete]
    with FeatureCache.open(entry.path) as cache:
        pieces = [
            piece
            for split in (cache[name] for name in cache.splits)
            for piece in (
                "\n".join(split.ids).encode(),
                split.digests.tobytes(),
                *(split.target(name).values.tobytes() for name in cache.targets),
                split.features[:].tobytes(),
            )
        ]
    return b"".join(pieces)


def try_fault(action: Action, context: Context, number: int, fault: int | str, scratch: Path) -> int:
    """Run an action whose call `number` fails, check the data folder, and run it again; returns the first exit code."""
    data_dir = scratch / "data"
    shutil.copytree(context.before, data_dir)
    try:
        code, answer = in_child(lambda: action.work(context.images, data_dir), Faults(data_dir, number, fault))
        if code not in (OK, REFUSED):
            raise WrongEnd(f"it ended with {code}:\n{answer}")
        if code == REFUSED and "damaged" in str(answer).lower():
            raise WrongEnd(f"a complete file was reported as damaged: {answer}")
        require_whole(data_dir)
        _require_ok(in_child(lambda: action.work(context.images, data_dir)))
        if rows_of(data_dir) != context.expected:
            raise WrongEnd("the second run gave other rows")
        return code
    finally:
        shutil.rmtree(data_dir)


def require_whole(data_dir: Path) -> None:
    """Raise WrongEnd unless all files with final names are complete."""
    # The file of targets is verified together with its manifest.
    for path in (one for one in data_dir.rglob("*.h5") if one.name not in TARGETS_FILES):
        if not verify(path, full=True).sound:
            raise WrongEnd(f"{path.name} is not complete: {verify(path, full=True).findings}")
    for manifest in data_dir.rglob("manifest.json"):
        with suppress(CacheIncomplete):
            if not verify(manifest.parent, full=True).sound:
                raise WrongEnd(f"{manifest} names files that are missing: {describe(manifest.parent).problem}")


def faults_of(calls: list[str]) -> Iterator[tuple[int, int | str]]:
    """Every call (its number, from 1) with every fault that it can have."""
    kinds: tuple[int | str, ...] = (*_ERRORS, SHORT)
    for number, name in enumerate(calls, start=1):
        yield from ((number, fault) for fault in kinds if fits(name, fault))


def fits(name: str, fault: int | str) -> bool:
    """Whether a call can have this fault."""
    return name in (_ERRORS[fault] if isinstance(fault, int) else _SHORTENED)


def import_everything(images: Path, data_dir: Path) -> None:
    """Run all actions in this process once, so that its children need no imports, and start no threads."""
    import torch

    torch.set_num_threads(1)
    _in_segments(images, data_dir)
    _label(images, data_dir)
    _pack(images, data_dir)


def make_images(folder: Path) -> Path:
    """Write sixteen small images in two classes, train and test."""
    random_numbers = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
        path = folder / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_numbers.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return folder


def run(names: list[str], sample: int | None, scratch: Path, seed: int = 0) -> dict[str, Any]:
    """Try all faults of these actions, or a sample of them. Raises WrongEnd at the first failed check."""
    images = make_images(scratch / "images")
    import_everything(images, scratch / "first")
    contexts = {name: Context.of(ACTIONS[name], images, scratch / name.replace(" ", "_")) for name in names}
    planned = [(name, *fault) for name, (_, calls) in contexts.items() for fault in faults_of(calls)]
    if sample is not None:
        planned = random.Random(seed).sample(planned, min(sample, len(planned)))
    result: dict[str, Any] = {
        name: {"calls": len(calls), "ok": 0, "refused": 0} for name, (_, calls) in contexts.items()
    }
    for name, number, fault in planned:
        context, calls = contexts[name]
        try:
            code = try_fault(ACTIONS[name], context, number, fault, scratch / "tried")
        except WrongEnd as error:
            what = fault if isinstance(fault, str) else errno.errorcode[fault]
            raise WrongEnd(f"{name}, call {number} of {len(calls)} ({calls[number - 1]}), {what}: {error}") from error
        result[name]["ok" if code == OK else "refused"] += 1
    return result | {"faults": len(planned)}
