"""Trains on a cache with less memory than its rows need; `python benchmarks/measure.py memory_limit` takes a large one.

RLIMIT_DATA limits what the process may allocate beyond its libraries. Keeping all features in memory must then fail,
which shows that the limit works; streamed features must give the same head.
"""

from __future__ import annotations

import re
import resource
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from featcache.cache import FeatureCache
from featcache.errors import ExtractionError
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.heads.config import HeadConfig
from featcache.runs.fit import fit_head

_CONFIG = HeadConfig(head="linear", standardize=False, max_epochs=3)


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A training. `limit_bytes`: memory beyond the libraries, or None. `resident`: all features are kept in memory."""

    cache: Path
    limit_bytes: int | None
    resident: bool


def train_limited(task: Limited, reporter: Reporter) -> dict[str, Any]:
    """Train within the limit, which applies to the whole process."""
    if task.limit_bytes is not None:
        # What RLIMIT_DATA counts.
        (kilobytes,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(kilobytes) + task.limit_bytes,) * 2)
    began = time.perf_counter()
    with FeatureCache.open(task.cache) as cache:
        run = fit_head(
            cache,
            _CONFIG,
            runs_dir=task.cache.parent / "runs",
            device="cpu",
            # Another number of threads rounds sums differently, and the heads would not be the same.
            threads=torch.get_num_threads(),
            resident_bytes=1 << 62 if task.resident else 0,
        )
    epochs = run.history()
    return {
        "seconds": time.perf_counter() - began,
        "epoch_s": statistics.median(epoch.seconds for epoch in epochs),
        "val_loss": [epoch.val_loss for epoch in epochs],
    }


def train_in_new_process(task: Limited) -> dict[str, Any]:
    """The training and the memory of its process beyond the libraries, or the error that ended it."""
    try:
        process = run_in_new_process(train_limited, task, LogReporter())
    except (MemoryError, RuntimeError, ExtractionError) as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"[:160]}
    return process.result | {"beyond_libraries_bytes": process.peak_bytes - process.libraries_bytes}


def compare(cache: Path, limit_bytes: int) -> dict[str, Any]:
    """All features in memory without a limit, streamed within it, and all in memory within it, which must fail."""
    streamed = Limited(cache=cache, limit_bytes=limit_bytes, resident=False)
    return {
        "cache_bytes": cache.stat().st_size,
        "limit_bytes": limit_bytes,
        "resident": train_in_new_process(replace(streamed, limit_bytes=None, resident=True)),
        "streamed": train_in_new_process(streamed),
        "resident_limited": train_in_new_process(replace(streamed, resident=True)),
    }
