"""Reads files with random damage; a sample is a test, `python benchmarks/measure.py mutations` reads many.

A sound file of each kind is damaged in one of several ways (bits, runs of bytes, a cut, a repeated or missing part, an
extreme integer). Then it is opened and listed, and up to three of its images are read and decoded. Half of the time,
the checksums of tar headers and PNG chunks are corrected, because they would detect all damage before it is parsed. Two
child processes work through the files; a child that needs more than ten seconds, or one more gigabyte of memory, for a
file is replaced.

Every file must be read, or give an error of featcache. The counts have the first traceback of each other error.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import re
import resource
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sound_files import SOUND

from featcache.columns import ColumnOptions
from featcache.errors import FeatcacheError
from featcache.images.decoding import decode
from featcache.images.location import open_images

PATIENCE_S = 10.0
MOST_BYTES = 2**30
WORKERS = 2
FINE, TYPED, UNTYPED, HANG, CRASH, MEMORY = "fine", "typed", "untyped", "hang", "crash", "over_memory"
BAD = (UNTYPED, HANG, CRASH, MEMORY)
_EXTREMES = (
    0, 1, -1, 2**7, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, -(2**63)
)  # fmt: skip


# --- damage ------------------------------------------------------------------------------------------------


def damage(content: bytes, kind: str, draws: random.Random) -> bytes:
    """The file with one kind of damage, in one or several places; mostly near its ends, where its structure is."""
    changed = bytearray(content)
    way = draws.choice((_flip_bits, _overwrite, _cut, _repeat, _delete, _put_integer, _put_integer))
    way(changed, draws)
    repair = _REPAIRS.get(kind)
    if repair is not None and draws.random() < 0.5:
        repair(changed)
    return bytes(changed)


def _somewhere(content: bytearray, draws: random.Random) -> int:
    last = max(0, len(content) - 1)
    near = min(512, last)
    return draws.choice((draws.randint(0, last), draws.randint(0, near), draws.randint(last - near, last)))


def _flip_bits(content: bytearray, draws: random.Random) -> None:
    for _ in range(draws.choice((1, 1, 2, 16))):
        content[_somewhere(content, draws)] ^= 1 << draws.randrange(8)


def _overwrite(content: bytearray, draws: random.Random) -> None:
    size = draws.choice((1, 2, 8, 64, 600))
    at = _somewhere(content, draws)
    content[at : at + size] = draws.choice((bytes(size), b"\xff" * size, b"9" * size, draws.randbytes(size)))


def _cut(content: bytearray, draws: random.Random) -> None:
    del content[_somewhere(content, draws) :]


def _repeat(content: bytearray, draws: random.Random) -> None:
    at = _somewhere(content, draws)
    content[at:at] = content[at : at + draws.choice((1, 30, 512, 1024))] * draws.choice((1, 1, 40))


def _delete(content: bytearray, draws: random.Random) -> None:
    at = _somewhere(content, draws)
    del content[at : at + draws.choice((1, 30, 512, 1024))]


def _put_integer(content: bytearray, draws: random.Random) -> None:
    number, size = draws.choice(_EXTREMES), draws.choice((1, 2, 4, 8, 12))
    binary = (number % 256**size).to_bytes(size, draws.choice(("little", "big")))
    text = draws.choice((b"%d", b"%012o", b"%x")) % number
    at = _somewhere(content, draws)
    new = draws.choice((binary, binary, text))
    content[at : at + len(new)] = new


def _repair_tar(content: bytearray) -> None:
    for at in range(0, len(content) - 511, 512):
        block = content[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            content[at + 148 : at + 156] = b"%06o\0 " % sum(block)


def _repair_png(content: bytearray) -> None:
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        content[end : end + 4] = (
            zlib.crc32(content[at + 4 : end]).to_bytes(4, "big") if end + 4 <= len(content) else b""
        )
        at = end + 4


_REPAIRS: Mapping[str, Callable[[bytearray], None]] = {
    "tar": _repair_tar, "webdataset": _repair_tar, "png": _repair_png,
}  # fmt: skip


# --- in a child --------------------------------------------------------------------------------------------


def use(kind: str, content: bytes, folder: Path) -> str:
    """Open, list and read one file; returns the outcome. Errors that are not featcache's are raised."""
    name = SOUND[kind].name
    if not SOUND[kind].is_set:
        try:
            decode(content, name)
        except FeatcacheError:
            return TYPED
        return FINE
    (folder / name).write_bytes(content)
    dataset = f"wds:{folder / name}" if kind == "webdataset" else folder / name
    try:
        with open_images(dataset, datasets_dir=folder, columns=ColumnOptions()) as source:
            return _read(source)
    except FeatcacheError:
        return TYPED


def _read(source: Any) -> str:
    ended = FINE
    for split in source.splits():
        for number, sample in enumerate(source.samples(split)):
            try:
                source.stamp(sample)
                if number < 3:
                    decode(source.read(sample), sample.id)
            except FeatcacheError:
                ended = TYPED
    _ = [list(cells) for column in source.columns for cells in column.cells.values()]
    return ended


def work(pipe: Connection, folder: Path, seed: int) -> None:
    """Receive pairs (kind, number), and send the outcome of each file, until the process is killed."""
    warnings.simplefilter("ignore")
    # Decoders write warnings to stderr.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    folder.mkdir(parents=True, exist_ok=True)
    sound = {kind: one.make(folder) for kind, one in SOUND.items()}
    for kind, content in sound.items():
        pipe.send((kind, _try_to_use(kind, content, folder)))
    # Memory that is allocated but never used does not show in the peak: limit the address space too.
    limit = _address_bytes() + 2 * MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        kind, number = pipe.recv()
        content = damage(sound[kind], kind, random.Random(f"{seed}/{kind}/{number}"))
        begin = _reset_peak()
        ended = _try_to_use(kind, content, folder)
        pipe.send((MEMORY, "") if _peak_bytes() - begin > MOST_BYTES else ended)


def _try_to_use(kind: str, content: bytes, folder: Path) -> tuple[str, str]:
    try:
        return use(kind, content, folder), ""
    except MemoryError:
        return MEMORY, traceback.format_exc()
    except Exception:
        return UNTYPED, traceback.format_exc()


def _reset_peak() -> int:
    """Reset the peak of the process's memory; returns the memory held now, in bytes.

    A forked process begins with more memory than it needs and may release some. Without the reset, a file could use
    that amount without raising the peak. For the same reason memory that was freed but kept by the allocator is
    returned to the system first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# --- in the parent -----------------------------------------------------------------------------------------


class Child:
    """A process that reads files, replaced when it does not answer. `sound`: the outcomes of the undamaged files."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=work, args=(child_pipe, self._folder, self._seed), daemon=True)
        self._process.start()
        child_pipe.close()
        self.sound = dict(self._pipe.recv() for _ in SOUND)

    def try_file(self, kind: str, number: int) -> tuple[str, str]:
        """The outcome of one file, and the traceback of an error."""
        self._pipe.send((kind, number))
        began = time.monotonic()
        try:
            while not self._pipe.poll(0.2):
                if time.monotonic() - began > PATIENCE_S:
                    return self._replace(HANG)
            ended: tuple[str, str] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return self._replace(CRASH)
        if ended[0] == MEMORY:
            self._replace(MEMORY)
        return ended

    def _replace(self, ended: str) -> tuple[str, str]:
        self._process.kill()
        self._process.join()
        self._start()
        return ended, ""

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


@dataclass(kw_only=True)
class Tally:
    """The outcomes of the files of one kind."""

    ended: Counter[str] = field(default_factory=Counter)
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    slowest_s: float = 0.0

    def add(self, number: int, ended: str, trace: str, seconds: float) -> None:
        """Count one file."""
        self.ended[ended] += 1
        self.seconds += seconds
        self.slowest_s = max(self.slowest_s, seconds)
        if ended in BAD:
            place = f"{ended}: {_place(trace)}"
            known = self.first.setdefault(place, {"count": 0, "first_number": number, "traceback": _portable(trace)})
            known["count"] += 1


def _place(trace: str) -> str:
    """The error of a traceback without its numbers, and the last line of featcache in it."""
    errors = re.findall(r"^[\w.]+(?:Error|Exception|Failed)\b.*$", trace, re.MULTILINE)
    lines = re.findall(r'File "[^"]*/featcache/([^"]+)", line (\d+)', trace)
    error = re.sub(r"0x[0-9a-f]+|\d+", "N", errors[-1] if errors else "")[:120]
    return error + (f" at {':'.join(lines[-1])}" if lines else "")


def _portable(trace: str) -> list[str]:
    return re.sub(r'File "[^"]*?(featcache/|tests/|[^/"]+/[^/"]+")', r'File "\1', trace).splitlines()


def run(kinds: Iterable[str], count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Read `count` files of each kind with `WORKERS` children. Kinds whose undamaged file is refused are skipped."""
    tasks: Iterator[tuple[str, int]] = iter([(kind, number) for number in range(count) for kind in kinds])
    children = [Child(folder / str(number), seed) for number in range(WORKERS)]
    unread = {kind for kind, (ended, _) in children[0].sound.items() if ended != FINE}
    tallies = {kind: Tally() for kind in kinds if kind not in unread}

    def until_done(child: Child) -> None:
        for kind, number in tasks:
            if kind in tallies:
                began = time.monotonic()
                tallies[kind].add(number, *child.try_file(kind, number), time.monotonic() - began)

    try:
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(until_done, children))
    finally:
        for child in children:
            child.close()
    return {
        "seed": seed,
        "count_of_each_kind": count,
        "not_read": {kind: list(children[0].sound[kind]) for kind in sorted(unread & set(kinds))},
        "kinds": {kind: _summary(tally) for kind, tally in tallies.items()},
    }


def _summary(tally: Tally) -> dict[str, Any]:
    return {
        **{name: tally.ended[name] for name in (FINE, TYPED, *BAD)},
        "seconds": round(tally.seconds, 1),
        "slowest_s": round(tally.slowest_s, 2),
        "bad": tally.first,
    }


def bad_ends(result: Mapping[str, Any]) -> int:
    """The number of files that were neither read nor gave an error of featcache."""
    return sum(counts[name] for counts in result["kinds"].values() for name in BAD)
