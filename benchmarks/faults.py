"""A system call that fails, at every call in turn: `python benchmarks/faults.py [--sample 100] [--only extract]`.

Each action runs in a child of its own, forked from a process that has imported everything. In the child the n-th call
on a file under the data folder fails with EIO, ENOSPC, EINTR or EMFILE, or does less than it was asked for. Then:

    - the child ended with success or with an error of featcache's own, never with another exception;
    - every file under a final name is whole, and nothing was called damaged;
    - the same action, run again without a fault, ends well and leaves the rows that it leaves without any fault.

The whole of it is counted into results/faults.json; a test runs a sample.
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
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from featcache import files
from featcache.cache.catalog import describe, discard, garbage, list_caches
from featcache.cache.manifest import TARGETS_FILES
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify
from featcache.errors import CacheIncomplete, FeatcacheError
from featcache.extraction.execution import Execution
from featcache.extraction.labelling import label
from featcache.extraction.request import Request
from featcache.extraction.run import assemble, extract

SHORT = "short"
OK, REFUSED, CRASHED = 0, 1, 2
_PATIENCE_S = 30
# By module: calls whose first argument is a path, or a descriptor.
_CALLS: dict[Any, tuple[str, ...]] = {
    os: (
        "open", "pwrite", "write", "preadv", "read", "fsync", "close", "replace", "rename", "unlink", "remove", "mkdir",
        "rmdir", "stat", "lstat", "fstat", "posix_fallocate", "ftruncate", "utime", "scandir", "listdir",
    ),
    io: ("open",),
    builtins: ("open",),
    fcntl: ("flock",),
}  # fmt: skip
# What a call may answer. Python itself repeats most calls that a signal interrupts; these it does not, or not all.
_ERRORS: dict[int, set[str]] = {
    errno.EIO: {
        "open",
        "pwrite",
        "write",
        "preadv",
        "read",
        "fsync",
        "replace",
        "rename",
        "unlink",
        "remove",
        "mkdir",
        "rmdir",
        "scandir",
        "listdir",
        "stat",
        "lstat",
        "fstat",
    },
    errno.ENOSPC: {"open", "pwrite", "write", "posix_fallocate", "mkdir", "replace", "fsync"},
    errno.EINTR: {"pwrite", "preadv", "posix_fallocate", "close", "flock"},
    errno.EMFILE: {"open", "scandir"},
}
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
        """From now on, in this process."""
        for module, names in _CALLS.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self._wrapped(name, getattr(module, name)))
        system = files.system
        for field, name in (
            ("pwrite", "pwrite"), ("preadv", "preadv"), ("fallocate", "posix_fallocate"), ("fsync", "fsync"),
            ("fsync_folder", "fsync"), ("replace", "replace"),
        ):  # fmt: skip
            setattr(system, field, getattr(os, name))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*arguments: Any, **options: Any) -> Any:
            if self._inside or not self._concerns(arguments):
                return call(*arguments, **options)
            self.count += 1
            self.names.append(name)
            if self.count != self.number:
                return call(*arguments, **options)
            return self._failing(name, call, arguments, options)

        return counted

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
            # Threads take turns as they like: another call has this number now.
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


def in_child(work: Callable[[], Any], faults: Faults | None = None) -> tuple[int, Any]:
    """The code with which a forked child ends, and what it says: the calls it made, or its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        write, leave = os.write, os._exit
        code, said = CRASHED, ""
        try:
            # One that hangs is a fault too.
            faulthandler.dump_traceback_later(_PATIENCE_S - 5)
            signal.alarm(_PATIENCE_S)
            if faults is not None:
                faults.install()
            work()
            code, said = OK, json.dumps(faults.names if faults is not None else [])
        except FeatcacheError as error:
            code, said = REFUSED, json.dumps(f"{type(error).__name__}: {error.message}")
        except BaseException:
            said = json.dumps(traceback.format_exc())
        finally:
            data = said.encode()
            while data:
                data = data[write(writing, data) :]
            leave(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(text or "null")


# --- what is done ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something that is done in a data folder. `before`: done without faults, to have something to work on."""

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
            discard(piece)


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
    """After a fault something is not as it must be."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Images, a data folder as it is before an action, and the rows that the action leaves."""

    images: Path
    before: Path
    expected: bytes

    @classmethod
    def of(cls, action: Action, images: Path, scratch: Path) -> tuple[Ground, list[str]]:
        """Where an action is tried, and the calls that it makes without a fault."""
        before, tried = scratch / "before" / "data", scratch / "whole" / "data"
        before.mkdir(parents=True)
        _require_ok(in_child(lambda: action.before(images, before)))
        shutil.copytree(before, tried)
        code, calls = in_child(lambda: action.work(images, tried), Faults(tried, None, SHORT))
        _require_ok((code, calls))
        return cls(images=images, before=before, expected=rows_of(tried)), calls


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


def tried(action: Action, ground: Ground, number: int, fault: int | str, scratch: Path) -> int:
    """Do an action whose call `number` fails, look at what is there, and do it again; how the first time ended."""
    data_dir = scratch / "data"
    shutil.copytree(ground.before, data_dir)
    try:
        code, said = in_child(lambda: action.work(ground.images, data_dir), Faults(data_dir, number, fault))
        if code not in (OK, REFUSED):
            raise WrongEnd(f"it ended with {code}:\n{said}")
        if code == REFUSED and "damaged" in str(said).lower():
            raise WrongEnd(f"something sound was called damaged: {said}")
        require_whole(data_dir)
        _require_ok(in_child(lambda: action.work(ground.images, data_dir)))
        if rows_of(data_dir) != ground.expected:
            raise WrongEnd("the second time left other rows")
        return code
    finally:
        shutil.rmtree(data_dir)


def require_whole(data_dir: Path) -> None:
    # The file of targets is looked at with the manifest that names it.
    for path in (one for one in data_dir.rglob("*.h5") if one.name not in TARGETS_FILES):
        if not verify(path, full=True).sound:
            raise WrongEnd(f"{path.name} is not whole: {verify(path, full=True).findings}")
    for manifest in data_dir.rglob("manifest.json"):
        with suppress(CacheIncomplete):
            if not verify(manifest.parent, full=True).sound:
                raise WrongEnd(f"{manifest} names what is not there: {describe(manifest.parent).problem}")


def faults_of(calls: list[str]) -> Iterator[tuple[int, int | str]]:
    """Every call with every fault that it may have."""
    kinds: tuple[int | str, ...] = (*_ERRORS, SHORT)
    for number, name in enumerate(calls, start=1):
        yield from ((number, fault) for fault in kinds if fits(name, fault))


def fits(name: str, fault: int | str) -> bool:
    """Whether a call may fail like that."""
    return name in (_ERRORS[fault] if isinstance(fault, int) else _SHORTENED)


def import_everything(images: Path, data_dir: Path) -> None:
    """Do in this process what the children will do, so that they find everything imported, and no threads."""
    import torch

    torch.set_num_threads(1)
    _in_segments(images, data_dir)
    _label(images, data_dir)
    _pack(images, data_dir)


def make_images(folder: Path) -> Path:
    """Sixteen small images in two classes, train and test."""
    drawn = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
        path = folder / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    return folder


def run(names: list[str], sample: int | None, scratch: Path, seed: int = 0) -> dict[str, Any]:
    """All faults of these actions, or a sample over all of them; raises WrongEnd at the first that ends wrongly."""
    images = make_images(scratch / "images")
    import_everything(images, scratch / "first")
    grounds = {name: Ground.of(ACTIONS[name], images, scratch / name.replace(" ", "_")) for name in names}
    planned = [(name, *fault) for name, (_, calls) in grounds.items() for fault in faults_of(calls)]
    if sample is not None:
        planned = random.Random(seed).sample(planned, min(sample, len(planned)))
    result: dict[str, Any] = {
        name: {"calls": len(calls), "ok": 0, "refused": 0} for name, (_, calls) in grounds.items()
    }
    for name, number, fault in planned:
        ground, calls = grounds[name]
        try:
            code = tried(ACTIONS[name], ground, number, fault, scratch / "tried")
        except WrongEnd as error:
            what = fault if isinstance(fault, str) else errno.errorcode[fault]
            raise WrongEnd(f"{name}, call {number} of {len(calls)} ({calls[number - 1]}), {what}: {error}") from error
        result[name]["ok" if code == OK else "refused"] += 1
    return result | {"faults": len(planned)}


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Actions: {', '.join(ACTIONS)}.")] = None,
    sample: Annotated[int | None, typer.Option(help="So many faults at random; none: all.")] = None,
) -> None:
    """Tries the faults and writes results/faults.json."""
    from machine import write

    with tempfile.TemporaryDirectory() as scratch:
        result = run(only or list(ACTIONS), sample, Path(scratch))
    print(json.dumps(result, indent=2))
    if not only and sample is None:
        write("faults", result)


if __name__ == "__main__":
    typer.run(main)
