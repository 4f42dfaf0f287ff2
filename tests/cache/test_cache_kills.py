"""SIGKILL at random moments, and several processes at once: no part is lost, no row is wrong.

`FEATCACHE_KILLS` sets how many kills the short version makes (30); the slow one makes ten times as many.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cache_samples import CLASSES, a_selection, a_spec, assert_whole, no_tmp_under, rows_for, tables

from featcache.cache.catalog import garbage
from featcache.cache.donors import Donors
from featcache.cache.parts import Part, open_parts, write_part
from featcache.cache.plan import part_paths
from featcache.cache.writer import assemble

ROWS = {"train": 90, "test": 30}
ROWS_PER_PART = 8
KILLS = int(os.environ.get("FEATCACHE_KILLS", "30"))


def extract(folder: Path, published: int) -> None:
    """A tiny extraction: the missing parts, told one by one through a pipe, then the cache, then the parts go."""
    spec, made = a_spec(), tables(ROWS)
    parts = folder / "c.parts"
    digests = np.concatenate([table.digests for table in made.values()])
    missing = Donors(open_parts(parts)).locate(digests, spec.layer_names).donor < 0
    for first in range(0, len(digests), ROWS_PER_PART):
        some = digests[first : first + ROWS_PER_PART]
        if missing[first : first + ROWS_PER_PART].any():
            path = write_part(
                parts, fingerprint=spec.fingerprint, first_row=first, digests=some, features=rows_for(spec, some)
            )
            os.write(published, path.name.encode() + b"\n")
    assemble(
        folder / "c.h5",
        spec=spec,
        selection=a_selection(),
        set_name="cifar10",
        classes=CLASSES,
        provenance={"created": "2026-11-24T06:00:00+00:00"},
        tables=made,
        donors=Donors(open_parts(parts)),
    )
    os.write(published, b"cache\n")
    for path in part_paths(parts):
        path.unlink()


def run_and_kill(folder: Path, after_s: float | None) -> tuple[list[str], bool]:
    """One extraction in a child, killed after a while: what it said it had published, and whether it was done."""
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
        said = pipe.read().split("\n")[:-1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return said, not os.WIFSIGNALED(status)


def check_survivors(folder: Path, said: list[str]) -> None:
    for path in part_paths(folder / "c.parts"):
        part = Part.open(path)
        for layer, rows in rows_for(a_spec(), part.digests).items():
            np.testing.assert_array_equal(part.gather(layer, np.arange(len(part))), rows)
    if (folder / "c.h5").exists():
        assert_whole(folder / "c.h5", a_spec(), tables(ROWS))
    if "cache" not in said:
        assert set(said) <= {path.name for path in part_paths(folder / "c.parts")}
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
        said, done = run_and_kill(folder, float(rng.uniform(0, whole_s * 1.1)))
        killed += not done
        check_survivors(folder, said)
        if (folder / "c.h5").exists() and rng.random() < 0.5:
            assert (folder / "c.h5").read_bytes() == uninterrupted
            (folder / "c.h5").unlink()
    run_and_kill(folder, None)
    assert (folder / "c.h5").read_bytes() == uninterrupted
    # What the dead left is known as such, and nothing else is.
    left = set(folder.rglob("*.tmp-*"))
    found = {one.path for one in garbage(folder, used=[folder / "c.h5"], now=time.time()) if "gone" in one.reason}
    assert found == left


def test_no_kill_loses_a_part_or_makes_a_wrong_row(tmp_path: Path) -> None:
    kill_many(tmp_path, KILLS)


@pytest.mark.slow
def test_no_kill_of_hundreds_loses_a_part_or_makes_a_wrong_row(tmp_path: Path) -> None:
    kill_many(tmp_path, 10 * KILLS)


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
    """Parts and cache under the same names as everybody else's."""
    spec, made = a_spec(), tables(ROWS)
    digests = np.concatenate([table.digests for table in made.values()])
    for first in range(0, len(digests), 40):
        some = digests[first : first + 40]
        write_part(
            folder / "c.parts",
            fingerprint=spec.fingerprint,
            first_row=first,
            digests=some,
            features=rows_for(spec, some),
        )
    assemble(
        folder / "c.h5",
        spec=spec,
        selection=a_selection(),
        set_name="cifar10",
        classes=CLASSES,
        provenance={},
        tables=made,
        donors=Donors(open_parts(folder / "c.parts")),
    )
    assert_whole(folder / "c.h5", spec, made)
