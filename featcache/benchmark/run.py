"""Runs the benchmark of one scenario: all ways one after another, in a data folder without existing caches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from featcache.backbones import devices
from featcache.benchmark import ways
from featcache.benchmark.agreement import compare_heads
from featcache.benchmark.controls import train_controls
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, Memory, Result, Way
from featcache.benchmark.scenarios import Scenario
from featcache.extraction.processes import ProcessResult, run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter

if TYPE_CHECKING:
    from featcache.extraction.request import Runner

Made = TypeVar("Made")

_STEPS = 5


def run_benchmark(
    scenario: Scenario,
    *,
    data_dir: Path,
    command: str,
    today: date,
    reporter: Reporter | None = None,
) -> Result:
    """Measure the four ways of a scenario, and compare end-to-end and cached heads.

    Args:
        scenario: What is measured.
        data_dir: The data folder with images and weights. Features go to a temporary folder inside it.
        command: The command that was typed, for the record.
        today: The date, for the record.
        reporter: Receives messages and progress; None for the log.

    Returns:
        The result.

    Raises:
        FeatcacheError: As `extract` and `train_head` raise it.
    """
    # First, so that a missing device raises before anything is computed.
    here = machine(scenario, today)
    outer = reporter or LogReporter()
    inner = QuietReporter(outer)
    with scratch(data_dir) as folder:
        task = ways.Task(scenario=scenario, data_dir=folder)
        outer.info(f"1/{_STEPS} cached, cold: extracting, then {scenario.heads} heads of {scenario.epochs} epochs")
        cold = run_in_new_process(ways.measure_cold, task, inner)
        features = cold.result.features
        # All other ways compute features with the runner of this cache.
        task = replace(task, runner=cast("Runner", features.runner))
        outer.info(f"2/{_STEPS} cached, warm: one head of {scenario.epochs} epochs")
        warm = run_in_new_process(ways.measure_warm, (task, cold.result.cache), inner)
        outer.info(f"3/{_STEPS} end to end as a notebook does it: {_sample_text(scenario)}")
        notebook = run_in_new_process(ways.measure_notebook, task, inner)
        outer.info(f"4/{_STEPS} end to end with featcache's own speed: {_sample_text(scenario)}")
        tuned = run_in_new_process(ways.measure_tuned, task, inner)
        outer.info(f"5/{_STEPS} the same heads from a cache, for comparison")
        controls = run_in_new_process(train_controls, task, inner).result
    measured = {NOTEBOOK: notebook, TUNED: tuned}
    return Result(
        command=command,
        machine=here,
        scenario=scenario,
        features=features,
        ways={
            NOTEBOOK: with_memory(notebook.result.way, notebook),
            TUNED: with_memory(tuned.result.way, tuned),
            COLD: with_memory(cold.result.way, cold),
            WARM: with_memory(warm.result, warm),
        },
        agreements=tuple(compare_heads(measured[control.baseline].result, control) for control in controls),
    )


class QuietReporter:
    """A Reporter for the steps inside a way: passes on progress, and each warning once; drops other messages."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._warned: set[str] = set()

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


def _sample_text(scenario: Scenario) -> str:
    return f"{scenario.sample_images} images of each split, {scenario.sampled_epochs} epochs"


def with_memory(way: Way, process: ProcessResult[Made]) -> Way:
    """The way with the memory that its process used."""
    memory = Memory(peak=process.peak_bytes, libraries=process.libraries_bytes, device=process.device_peak_bytes)
    return replace(way, memory=memory)


def machine(scenario: Scenario, today: date) -> dict[str, Any]:
    """Processor, cores, device, versions, date. Raises InvalidOption for a missing device."""
    device = devices.resolve_device(scenario.device)
    return devices.provenance(device) | {"cores": devices.cores(), "date": today.isoformat()}


@contextmanager
def scratch(data_dir: Path) -> Iterator[Path]:
    """A temporary data folder without features, which shares data sets and weights with `data_dir`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="benchmark.tmp-") as name:
        for shared in ("datasets", "weights"):
            (data_dir / shared).mkdir(exist_ok=True)
            (Path(name) / shared).symlink_to((data_dir / shared).resolve(), target_is_directory=True)
        yield Path(name)
