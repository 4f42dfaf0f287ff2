"""A cache larger than the memory that its training may take: features are streamed, and the limit is enforced.

The limit is on what the process may allocate beyond its libraries (RLIMIT_DATA), so holding all features fails, and is
tried to show that it does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from featcache.benchmark import ways
from featcache.benchmark.records import StreamingResult, Way
from featcache.benchmark.run import Quietly, machine, scratch, with_memory
from featcache.benchmark.scenarios import Scenario
from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError
from featcache.extraction.processes import run_apart
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.runs.fit import fit_head

# Of the cache's size: what a training may allocate.
_ALLOWED = 0.4


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A training of the first head on a cache. `limit_bytes`: None for no limit; `streams`: never hold all features."""

    task: ways.Task
    cache: Path
    limit_bytes: int | None
    streams: bool


def run_streaming(
    scenario: Scenario, *, data_dir: Path, command: str, today: date, reporter: Reporter | None = None
) -> StreamingResult:
    """Measure training on a cache that does not fit. Raises FeatcacheError as `run_benchmark` does."""
    # Before anything is computed: a device that is not there shows now.
    here = machine(scenario, today)
    told = reporter or LogReporter()
    inner = Quietly(told)
    with scratch(data_dir) as folder:
        task = ways.Task(scenario=scenario, data_dir=folder)
        told.say(f"1/4 extracting {scenario.images} images")
        cold = run_apart(ways.cold, task, inner).result
        limit = int(cold.features.cache_bytes * _ALLOWED)
        within = Limited(task=task, cache=cold.cache, limit_bytes=limit, streams=True)
        told.say("2/4 features in memory, without a limit")
        resident = run_apart(limited, replace(within, limit_bytes=None, streams=False), inner)
        told.say(f"3/4 features streamed, within {limit / 1e6:,.0f} MB")
        streamed = run_apart(limited, within, inner)
        told.say("4/4 features in memory, within the same limit, which must fail")
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


def limited(task: Limited, reporter: Reporter) -> Way:
    """Train within the limit, in a process of its own."""
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
            # With other threads sums round otherwise, and the heads would not be the same.
            threads=torch.get_num_threads(),
            # Nothing at all may stay, or everything.
            resident_bytes=0 if task.streams else 1 << 62,
        )
    name = "streamed" if task.streams else "resident"
    return ways.cached_way(name, run, setup_s=0.0, heads_s=[(1, time.perf_counter() - began)])


def _failing(task: Limited, reporter: Reporter) -> str:
    try:
        run_apart(limited, task, reporter)
    except (MemoryError, RuntimeError, ExtractionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"[:160]
    raise ExtractionError(
        f"training with all features in memory fitted into {task.limit_bytes} bytes, so the limit proves nothing",
        hint="more --images",
    )


def _data_bytes() -> int:
    # What RLIMIT_DATA counts.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData:")).split()[1])
