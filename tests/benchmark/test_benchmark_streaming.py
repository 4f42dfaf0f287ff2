"""`featcache benchmark --scenario bigger-than-memory`: the limit is enforced, and only streaming fits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_files import benchmark_module

from featcache.benchmark.scenarios import scenario
from featcache.benchmark.streaming import LimitedTraining, train_limited
from featcache.benchmark.ways import Task
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import LogReporter

ROWS, WIDE = 20_000, 8192


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_under_the_limit_only_streaming_fits_and_gives_the_same_head(tmp_path: Path) -> None:
    # 328 MB.
    with benchmark_module("features").write_features(tmp_path, {"train": ROWS}, WIDE) as made:
        cache = made.path
    chosen = scenario("bigger-than-memory")
    task = Task(scenario=replace(chosen, epochs=2, head=replace(chosen.head, head="linear")), data_dir=tmp_path)
    within = LimitedTraining(task=task, cache=cache, limit_bytes=160_000_000, streams=True)
    resident = run_in_new_process(train_limited, replace(within, limit_bytes=None, streams=False), LogReporter())
    streamed = run_in_new_process(train_limited, within, LogReporter())
    assert streamed.result.curve == resident.result.curve
    assert streamed.peak_bytes - streamed.libraries_bytes < 160_000_000
    assert resident.peak_bytes - resident.libraries_bytes > ROWS * WIDE * 2 * 0.8
    with pytest.raises(MemoryError):
        run_in_new_process(train_limited, replace(within, streams=False), LogReporter())
