"""Extraction on a cluster of three nodes on this machine: lost units are computed again, with the same bytes.

Everything stays on the loopback interface.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray_driver import SEGMENT_ROWS, request
from tiny import write_images

from featcache.cache import FeatureCache
from featcache.errors import ExtractionError, InvalidOption, MissingExtra
from featcache.extraction.ray_engine import Cluster, extract_on_ray
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images import ArraySource

pytestmark = pytest.mark.cluster

NODE = {"num_cpus": 1}
# Workers inherit it: those of other clusters on this machine are left alone.
MARK = f"FEATCACHE_TEST_CLUSTER={secrets.token_hex(8)}"
EXECUTION = Execution(segment_rows=SEGMENT_ROWS, device="cpu")


class RecordingReporter:
    """A reporter that records sentences; `after_3=act` calls `act` when 3 segments are done."""

    def __init__(self, **at: Callable[[], object]) -> None:
        self.at = {int(name.removeprefix("after_")): act for name, act in at.items()}
        self.sentences: list[str] = []

    def info(self, text: str) -> None:
        self.sentences.append(text)

    warn = info

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if stage == "segments":
            for number in [number for number in self.at if number <= done]:
                self.at.pop(number)()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        **dict([MARK.split("=")]),
        # Ray reads it when it is loaded: on any system all nodes use the loopback interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A task finds the modules of these tests as the driver does.
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster as Nodes

    # A dead node is noticed in seconds, but a slow node on a busy machine does not count as dead.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}
    nodes: Any = Nodes(initialize_head=True, head_node_args={**NODE, "_system_config": quick})
    assert nodes.address.startswith("127.0.0.1:")
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    if ray.is_initialized():
        ray.shutdown()
    nodes.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=28, test=8)


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = extract(request(images, tmp_path_factory.mktemp("alone")), EXECUTION)
    torch.set_num_threads(threads)
    return arrays(done.cache)


def arrays(path: Path) -> dict[str, bytes]:
    with FeatureCache.open(path) as cache:
        arrays = {name: cache.file.read(name, np.arange(place.shape[0])).tobytes()
                  for name, place in cache.file.contents.arrays.items()}  # fmt: skip
        return arrays | {name: cache.file.read_table(name).tobytes() for name in cache.file.table_names}


def workers() -> list[int]:
    """The processes of this cluster that compute a unit now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"_compute_unit" in path.read_bytes() and MARK.encode() in path.with_name("environ").read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def send_signal(kind: signal.Signals) -> int:
    """Send a signal to a process that computes a unit, as soon as there is one; returns its number."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in workers():
            os.kill(pid, kind)
            return pid
        time.sleep(0.001)
    raise AssertionError("no worker was seen at work")


def test_a_killed_worker_and_a_removed_node_lose_nothing(
    cluster: Any, images: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    nodes = [cluster.add_node(**NODE), cluster.add_node(**NODE)]
    reporter = RecordingReporter(
        after_3=lambda: send_signal(signal.SIGKILL), after_9=lambda: cluster.remove_node(nodes[0], allow_graceful=False)
    )
    done = extract_on_ray(
        request(images, tmp_path), EXECUTION, Cluster(address=cluster.address, max_parallel=16), reporter=reporter
    )
    assert not reporter.at
    assert done.complete
    assert done.computed + done.reused == 108
    # A worker that dies between the publishing of its segment and its answer leaves a segment that is reused.
    assert done.reused in (0, SEGMENT_ROWS, 2 * SEGMENT_ROWS)
    assert arrays(done.cache) == alone
    assert not list(tmp_path.glob("features/*/"))
    assert (
        sum(int(sentence.split()[-2]) for sentence in reporter.sentences if sentence.endswith(" images"))
        == done.computed
    )
    again = extract_on_ray(request(images, tmp_path), EXECUTION, Cluster(address=cluster.address))
    assert again.computed == 0
    cluster.remove_node(nodes[1])


def test_after_a_killed_driver_written_segments_are_reused(
    cluster: Any, images: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    words = [
        sys.executable,
        str(Path(__file__).with_name("ray_driver.py")),
        cluster.address,
        str(images),
        str(tmp_path),
    ]
    driver = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while len(list(tmp_path.glob("features/*/*.h5"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    written = len(list(tmp_path.glob("features/*/*.h5")))
    assert written >= 4
    done = extract_on_ray(request(images, tmp_path), EXECUTION, Cluster(address=cluster.address))
    assert done.computed <= 108 - written * SEGMENT_ROWS
    assert arrays(done.cache) == alone


def test_a_unit_that_fails_three_times_is_reported_with_its_rows(cluster: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=4, test=0)
    (images / "train" / "dog" / "01.jpg").write_bytes(b"no image")
    reporter = RecordingReporter()
    request_ = request(images, tmp_path / "data")
    with pytest.raises(ExtractionError, match=r"images 4 to 7 failed 3 times: .*dog/01\.jpg"):
        extract_on_ray(request_, EXECUTION, Cluster(address=cluster.address), reporter=reporter)
    assert sum("tried again" in sentence for sentence in reporter.sentences) == 2
    skipping = Execution(segment_rows=SEGMENT_ROWS, device="cpu", on_error="skip")
    done = extract_on_ray(request_, skipping, Cluster(address=cluster.address))
    assert [one.id for one in done.skipped] == ["train/dog/01.jpg"]
    assert (done.computed + done.reused, done.rows) == (11, {"train": 11})


def test_a_hung_task_is_cancelled_and_done_again(
    cluster: Any, images: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    reporter = RecordingReporter(after_2=lambda: send_signal(signal.SIGSTOP))
    done = extract_on_ray(
        request(images, tmp_path),
        EXECUTION,
        Cluster(address=cluster.address, deadline_s=25, max_parallel=16),
        reporter=reporter,
    )
    assert not reporter.at
    # It was stopped at its unit, or just before it created its mark.
    warnings = ("was not done after 25 s", "no task began or ended for 25 s")
    assert any(one in sentence for sentence in reporter.sentences for one in warnings)
    assert arrays(done.cache) == alone


def test_own_images_and_backbones_are_refused_on_a_cluster(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    request_ = Request(dataset=ArraySource(pixels, [0, 1, 0, 1]), backbone="pixels", data_dir=tmp_path)
    with pytest.raises(InvalidOption, match="every worker opens images"):
        extract_on_ray(request_, EXECUTION, Cluster())


@pytest.mark.parametrize(
    "options", [{"cpus_per_task": 0}, {"max_parallel": 0}, {"deadline_s": 0}, {"gpus_per_task": -1}]
)
def test_invalid_options_of_a_cluster_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Cluster(**options)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra) as raised:
        extract_on_ray(request(images, tmp_path), EXECUTION, Cluster())
    assert "featcache[ray]" in str(raised.value.hint)
