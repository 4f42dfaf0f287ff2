"""Extractions of the same set at once end with one file, and kills at random moments lose no segment and no row.

`python benchmarks/measure.py kills` repeats the kills in large numbers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import h5py
import pytest
from benchmark_files import BENCHMARKS
from tiny import write_images

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


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and the harness needs /proc")
def test_killed_extractions_lose_nothing_and_end_with_the_same_rows() -> None:
    # In a process of its own, whose children inherit no threads.
    line = [sys.executable, str(BENCHMARKS / "measure.py"), "kills", "--quick", "--kills", "12"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["kills"]["kills"] == 12


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
