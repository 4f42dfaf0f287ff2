"""SIGKILL at random points of a whole extraction: no part is lost, no row is wrong, the file ends up equal.

The short version runs always; `FEATCACHE_KILLS=300 pytest tests/extraction/test_kills.py` is the long one.
A fork server keeps the imports: each child is a real process of its own that is really killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import h5py
import pytest
from killed import main as extract_all
from tiny import write_images

from featcache.cache.parts import open_parts
from featcache.cache.reader import FeatureCache

KILLS = int(os.environ.get("FEATCACHE_KILLS", "25"))


def start(images: Path, data_dir: Path) -> int:
    """Forks a child that extracts; the parent has started no thread that the child could miss."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        extract_all(str(images), str(data_dir))
        os._exit(0)
    except BaseException:
        os._exit(3)


def finished(pid: int, within_s: float) -> bool:
    """Whether the child ended by itself within that time; otherwise it is killed."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"the child failed with {os.waitstatus_to_exitcode(status)}"
            return True
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def arrays(cache: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(cache) as file:
        file.visititems(lambda name, it: found.update({name: it[()].tobytes()}) if hasattr(it, "shape") else None)
    return found


def published(data_dir: Path) -> set[Path]:
    return set((data_dir / "features").glob("*.parts/part-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_extractions_lose_nothing_and_end_with_the_same_file(tmp_path: Path) -> None:
    images = write_images(tmp_path / "pictures", train=24, test=8)
    began = time.monotonic()
    assert finished(start(images, tmp_path / "reference"), within_s=120)
    whole_s = time.monotonic() - began
    (reference,) = (tmp_path / "reference" / "features").glob("*.h5")
    expected, rng, kills, round_ = arrays(reference), random.Random(0), 0, 0
    while kills < KILLS:
        data_dir, round_ = tmp_path / f"round{round_}", round_ + 1
        standing: set[Path] = set()
        while not finished(start(images, data_dir), within_s=rng.uniform(0, 1.2 * whole_s)):
            kills += 1
            now = published(data_dir)
            finals = list((data_dir / "features").glob("*.h5"))
            assert standing <= now or finals, "a published part was lost"
            standing = now
            for folder in (data_dir / "features").glob("*.parts"):
                # Every part under its final name is whole.
                assert len(open_parts(folder)) == len(list(folder.glob("part-*")))
            for final in finals:
                assert arrays(final) == expected
        (cache,) = (data_dir / "features").glob("*.h5")
        assert arrays(cache) == expected
        assert FeatureCache.open(cache).name == reference.stem
        assert not list((data_dir / "features").glob("*.parts"))
    print(f"{kills} kills over {round_} extractions")
