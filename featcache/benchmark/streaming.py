"""Measures training on a cache that is larger than the memory allowed, with streamed features.

RLIMIT_DATA limits what the process may allocate beyond its libraries. Keeping all features in memory must then fail,
which is measured too, to prove that the limit works.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from featcache.benchmark import ways
from featcache.benchmark.records import StreamingResult, Way
from featcache.benchmark.run import QuietReporter, machine, scratch, with_memory
from featcache.benchmark.scenarios import Scenario
from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.runs.fit import fit_head

# The share of the cache's size that a training may allocate.
_ALLOWED = 0.4


@dataclass(frozen=True, kw_only=True)
class LimitedTraining:
    """A training of the first head on a cache.

    `limit_bytes`: memory beyond the libraries, None for no limit. `streams`: whether features are streamed; if not, all
    are kept in memory.
    """

    task: ways.Task
    cache: Path
    limit_bytes: int | None
    streams: bool


def run_streaming(
    scenario: Scenario, *, data_dir: Path, command: str, today: date, reporter: Reporter | None = None
) -> StreamingResult:
    """Measure training on a cache that does not fit in memory. Raises FeatcacheError as `run_benchmark` does."""
    # First, so that a missing device raises before anything is computed.
    here = machine(scenario, today)
    outer = reporter or LogReporter()
    inner = QuietReporter(outer)
    with scratch(data_dir) as folder:
        task = ways.Task(scenario=scenario, data_dir=folder)
        outer.info(f"1/4 extracting {scenario.images} images")
        cold = run_in_new_process(ways.measure_cold, task, inner).result
        limit = int(cold.features.cache_bytes * _ALLOWED)
        within = LimitedTraining(task=task, cache=cold.cache, limit_bytes=limit, streams=True)
        outer.info("2/4 features in memory, without a limit")
        resident = run_in_new_process(train_limited, replace(within, limit_bytes=None, streams=False), inner)
        outer.info(f"3/4 features streamed, within {limit / 1e6:,.0f} MB")
        streamed = run_in_new_process(train_limited, within, inner)
        outer.info("4/4 features in memory, within the same limit, which must fail")
        fails = _failing(replace(within, streams=False), inner)
    return StreamingResult(
        command=command,
        machine=here,
        scenario=scenario,
        features=cold.features,
        limit_bytes=limit,
        resident=with_memory(resident.result, resident),
        streamed=with_memory(streamed.result, streamed),
        resident_fails=fails,
    )


def train_limited(task: LimitedTraining, reporter: Reporter) -> Way:
    """Train within the limit. The limit applies to the whole process, so run it in its own process."""
    if task.limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + task.limit_bytes,) * 2)
    config = task.task.scenario.configs()[0]
    began = time.perf_counter()
    with FeatureCache.open(task.cache) as cache:
        run = fit_head(
            cache,
            config,
            runs_dir=task.task.runs_dir,
            device="cpu",
            # Another number of threads rounds sums differently, and the heads would not be the same.
            threads=torch.get_num_threads(),
            # Keep nothing in memory, or everything.
            resident_bytes=0 if task.streams else 1 << 62,
        )
    name = "streamed" if task.streams else "resident"
    return ways.way_of_run(name, run, setup_s=0.0, heads_s=[(1, time.perf_counter() - began)])


def _failing(task: LimitedTraining, reporter: Reporter) -> str:
    try:
        run_in_new_process(train_limited, task, reporter)
    except (MemoryError, RuntimeError, ExtractionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"[:160]
    raise ExtractionError(
        f"training with all features in memory needed at most {task.limit_bytes} bytes, so the limit proves nothing",
        hint="more --images",
    )


def _data_bytes() -> int:
    # What RLIMIT_DATA counts.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData:")).split()[1])
