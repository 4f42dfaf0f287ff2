"""SIGKILL at random points of an extraction: no segment is lost, no row is wrong, and the final file is the same.

The short version runs always; `FEATCACHE_KILLS=300 pytest tests/extraction/test_kills.py` runs the long one.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import h5py
import pytest
from tiny import write_images

from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import open_segments

KILLS = int(os.environ.get("FEATCACHE_KILLS", "12"))


# A server process forks the children: it has imported everything and started no thread.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["killed"])


@pytest.fixture(autouse=True)
def server_finds_what_it_preloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def _extract_all(images: str, data_dir: str) -> None:
    # Imported only in the server, because this import limits torch to one thread.
    from killed import main

    main(images, data_dir)


def start(images: Path, data_dir: Path) -> BaseProcess:
    child = CONTEXT.Process(target=_extract_all, args=(str(images), str(data_dir)))
    child.start()
    return child


def has_finished(child: BaseProcess, within_s: float) -> bool:
    """Whether the child ended by itself within that time; otherwise it is killed."""
    child.join(within_s)
    if child.exitcode is None:
        child.kill()
        child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the child failed with {child.exitcode}"
    return child.exitcode == 0


def arrays(cache: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(cache) as file:
        file.visititems(lambda name, it: found.update({name: it[()].tobytes()}) if hasattr(it, "shape") else None)
    return found


def segments_in(data_dir: Path) -> set[Path]:
    return set((data_dir / "features").glob("*/*.h5"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_extractions_lose_nothing_and_end_with_the_same_file(tmp_path: Path) -> None:
    images = write_images(tmp_path / "pictures", train=12, test=8)
    assert has_finished(start(images, tmp_path / "first"), within_s=120)
    began = time.monotonic()
    assert has_finished(start(images, tmp_path / "reference"), within_s=120)
    whole_s = time.monotonic() - began
    (reference,) = (tmp_path / "reference" / "features").glob("*.h5")
    expected, rng, kills, round_ = arrays(reference), random.Random(0), 0, 0
    while kills < KILLS:
        data_dir, round_ = tmp_path / f"round{round_}", round_ + 1
        existing: set[Path] = set()
        while not has_finished(start(images, data_dir), within_s=rng.uniform(0, 1.2 * whole_s)):
            kills += 1
            now = segments_in(data_dir)
            finals = list((data_dir / "features").glob("*.h5"))
            assert existing <= now or finals, "a segments_in segment was lost"
            existing = now
            for manifest in (data_dir / "features").glob("*/manifest.json"):
                # Every segment under its final name is complete.
                folder = manifest.parent
                assert len(open_segments(folder, Manifest.read(folder))) == len(list(folder.glob("*.h5")))
            for final in finals:
                assert arrays(final) == expected
        (cache,) = (data_dir / "features").glob("*.h5")
        assert arrays(cache) == expected
        assert FeatureCache.open(cache).name == reference.stem
        assert not list((data_dir / "features").glob("*/"))
    print(f"{kills} kills over {round_} extractions")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_processes_that_extract_the_same_at_once_end_with_one_equal_file(tmp_path: Path) -> None:
    images = write_images(tmp_path / "pictures", train=10, test=4)
    assert has_finished(start(images, tmp_path / "reference"), within_s=120)
    (reference,) = (tmp_path / "reference" / "features").glob("*.h5")
    children = [start(images, tmp_path / "shared") for _ in range(4)]
    assert all(has_finished(child, within_s=120) for child in children)
    (cache,) = (tmp_path / "shared" / "features").glob("*.h5")
    assert arrays(cache) == arrays(reference)
    assert not list((tmp_path / "shared" / "features").glob("*.tmp-*"))
