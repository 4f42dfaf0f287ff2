"""Runs a benchmark: all ways one after another, in a data folder without existing caches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

from featcache.backbones import devices
from featcache.benchmark import ways
from featcache.benchmark.options import BenchmarkOptions
from featcache.benchmark.result import COLD, NOTEBOOK, TUNED, WARM, Result, Way
from featcache.extraction.processes import ProcessResult, run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Runner


def run_benchmark(
    options: BenchmarkOptions, *, data_dir: Path, command: str, today: date, reporter: Reporter | None = None
) -> Result:
    """Measure the four ways, and compare end-to-end heads with heads from a cache.

    Args:
        options: What is measured.
        data_dir: The data folder with images and weights. Features go to a temporary folder inside it.
        command: The command that was typed, for the record.
        today: The date, for the record.
        reporter: Receives messages and progress; None for the log.

    Raises:
        FeatcacheError: As `extract` and `train_head` raise it.
    """
    # First, so that a missing device raises before anything is computed.
    machine = devices.provenance(devices.resolve_device(options.device)) | {"cores": devices.cores()}
    outer = reporter or LogReporter()
    inner = QuietReporter(outer)
    sampled = f"{options.sample_limit or 'all'} images of each split, {options.sampled_epochs} epochs"
    with scratch_folder(data_dir) as folder:
        task = ways.Task(options=options, data_dir=folder)
        outer.info(f"1/5 from a cache, cold: extracting, then {options.heads} heads of {options.epochs} epochs")
        cold = run_in_new_process(ways.measure_cold, task, inner)
        # All other ways compute features with the runner of this cache.
        task = replace(task, runner=cast(Runner, cold.result.features.runner))
        outer.info(f"2/5 from a cache, warm: one head of {options.epochs} epochs")
        warm = run_in_new_process(ways.measure_warm, (task, cold.result.cache), inner)
        outer.info(f"3/5 end to end as a notebook does it: {sampled}")
        notebook = run_in_new_process(ways.measure_notebook, task, inner)
        outer.info(f"4/5 end to end at featcache's own speed: {sampled}")
        tuned = run_in_new_process(ways.measure_tuned, task, inner)
        outer.info("5/5 the same heads from a cache, for comparison")
        trained = {NOTEBOOK: notebook.result[1], TUNED: tuned.result[1]}
        compared = run_in_new_process(ways.compare_with_cache, (task, trained), inner).result
    return Result(
        command=command,
        machine=machine | {"date": today.isoformat()},
        options=options,
        features=cold.result.features,
        ways={
            NOTEBOOK: _with_memory(notebook.result[0], notebook),
            TUNED: _with_memory(tuned.result[0], tuned),
            COLD: _with_memory(cold.result.way, cold),
            WARM: _with_memory(warm.result, warm),
        },
        agreements=tuple(compared),
    )


def _with_memory(way: Way, process: ProcessResult[Any]) -> Way:
    memory = {"peak": process.peak_bytes, "libraries": process.libraries_bytes, "device": process.device_peak_bytes}
    return replace(way, memory=memory)


class QuietReporter:
    """A Reporter for the steps inside a way: passes on progress, and each warning once; drops other messages."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._warned = reporter, set[str]()

    def info(self, text: str) -> None:
        """Drop the message: each of the five steps would repeat it."""

    def warn(self, text: str) -> None:
        """Pass on a warning the first time."""
        if text not in self._warned:
            self._warned.add(text)
            self._reporter.warn(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """Pass on progress."""
        self._reporter.advance(stage, done, total, bound=bound)


@contextmanager
def scratch_folder(data_dir: Path) -> Iterator[Path]:
    """A temporary data folder without features, which shares data sets and weights with `data_dir`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="benchmark.tmp-") as name:
        for shared in ("datasets", "weights"):
            (data_dir / shared).mkdir(exist_ok=True)
            (Path(name) / shared).symlink_to((data_dir / shared).resolve(), target_is_directory=True)
        yield Path(name)
