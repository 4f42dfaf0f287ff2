"""SIGKILL at random moments, and several processes at once: no segment is lost, no row is wrong.

`FEATCACHE_KILLS` sets how many kills the short version makes (15); the slow one makes twenty times as many.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cache_samples import a_spec, an_info, assert_whole, no_tmp_under, tables, write_segment

from featcache.cache.catalog import discard_segments, garbage
from featcache.cache.donors import Donors
from featcache.cache.manifest import MANIFEST_NAME, Manifest, Segment
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import complete_manifest, open_segments
from featcache.cache.writer import write_packed

ROWS = {"train": 90, "test": 30}
SEGMENT_ROWS = 8
SEGMENTS = [
    Segment.plan(split, first, min(SEGMENT_ROWS, rows - first))
    for split, rows in ROWS.items()
    for first in range(0, rows, SEGMENT_ROWS)
]
KILLS = int(os.environ.get("FEATCACHE_KILLS", "15"))


def extract(folder: Path, published: int) -> None:
    """A tiny extraction: the missing segments, reported one by one through a pipe, the manifest, then the packing."""
    segments, info, made = folder / "c", an_info(), tables(ROWS)
    manifest = Manifest(texts=info.texts(), segments=tuple(SEGMENTS), segment_rows=SEGMENT_ROWS, command="again")
    if not (segments / MANIFEST_NAME).exists():
        manifest.write(segments)
    there = {segment for segment, _ in open_segments(segments, manifest)}
    for segment in SEGMENTS:
        if segment not in there:
            path = write_segment(segments, info, segment, made[segment.split].take(rows_of(segment)))
            os.write(published, path.name.encode() + b"\n")
    complete_manifest(segments, manifest, info, made).write(segments)
    with FeatureCache.open(segments) as cache:
        write_packed(folder / "c.h5", info, tables=made, donors=Donors([cache[split] for split in cache.splits]))
    os.write(published, b"cache\n")
    discard_segments(segments)


def rows_of(segment: Segment) -> slice:
    first = int(segment.file.removesuffix(".h5").split("-")[1])
    return slice(first, first + segment.rows)


def run_and_kill(folder: Path, after_s: float | None) -> tuple[list[str], bool]:
    """One extraction in a child, killed after a while: what it reported as published, and whether it was done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            extract(folder, writing)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(reading) as pipe:
        published = pipe.read().split("\n")[:-1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return published, not os.WIFSIGNALED(status)


def check_survivors(folder: Path, published: list[str]) -> None:
    for segment in SEGMENTS:
        path = folder / "c" / segment.file
        if path.exists():
            assert_whole(path, a_spec(), {segment.split: tables(ROWS)[segment.split].take(rows_of(segment))})
    if (folder / "c.h5").exists():
        assert_whole(folder / "c.h5", a_spec(), tables(ROWS))
    if "cache" not in published:
        assert set(published) <= {path.name for path in (folder / "c").glob("*.h5")}
    else:
        assert (folder / "c.h5").exists()


def kill_many(tmp_path: Path, kills: int) -> None:
    begun = time.perf_counter()
    run_and_kill(tmp_path / "whole", None)
    whole_s = time.perf_counter() - begun
    uninterrupted = (tmp_path / "whole" / "c.h5").read_bytes()
    rng = np.random.default_rng(0)
    folder, killed = tmp_path / "killed", 0
    while killed < kills:
        published, done = run_and_kill(folder, float(rng.uniform(0, whole_s * 1.1)))
        killed += not done
        check_survivors(folder, published)
        if (folder / "c.h5").exists() and rng.random() < 0.5:
            assert (folder / "c.h5").read_bytes() == uninterrupted
            (folder / "c.h5").unlink()
    run_and_kill(folder, None)
    assert (folder / "c.h5").read_bytes() == uninterrupted
    # Files left by killed processes are listed, and no others.
    left = set(folder.rglob("*.tmp-*"))
    found = {one.path for one in garbage(folder, used=[folder / "c.h5"], now=time.time()) if "has ended" in one.reason}
    assert found == left


def test_no_kill_loses_a_segment_or_writes_a_wrong_row(tmp_path: Path) -> None:
    kill_many(tmp_path, KILLS)


@pytest.mark.slow
def test_no_kill_of_hundreds_loses_a_segment_or_writes_a_wrong_row(tmp_path: Path) -> None:
    kill_many(tmp_path, 20 * KILLS)


@pytest.mark.parametrize("processes", [2, 8])
def test_several_processes_at_once_do_no_harm(tmp_path: Path, processes: int) -> None:
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(3):
                    assemble_together(tmp_path)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * processes
    assert_whole(tmp_path / "c.h5", a_spec(), tables(ROWS))
    assert no_tmp_under(tmp_path)


def assemble_together(folder: Path) -> None:
    """Segments and cache under the same names as every other process."""
    info, made = an_info(), tables(ROWS)
    for segment in SEGMENTS:
        write_segment(folder / "c", info, segment, made[segment.split].take(rows_of(segment)))
    manifest = Manifest(texts=info.texts(), segments=tuple(SEGMENTS), segment_rows=SEGMENT_ROWS, command="again")
    manifest.write(folder / "c")
    splits = [split for _, split in open_segments(folder / "c", manifest)]
    write_packed(folder / "c.h5", info, tables=made, donors=Donors(splits))
    assert_whole(folder / "c.h5", a_spec(), made)
