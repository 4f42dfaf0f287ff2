"""The whole benchmark of one scenario: every way after the other, nobody else's cache in sight."""

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
from featcache.benchmark.agreement import compared
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, Memory, Result, Way
from featcache.benchmark.scenarios import Scenario
from featcache.benchmark.twins import twins
from featcache.extraction.processes import Apart, run_apart
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
    """Measure a scenario. Images and weights are looked for in `data_dir`; the features go to a folder beside them
    that is removed at the end. `command`: what was typed, for the record.

    Raises FeatcacheError as `extract` and `train_head` do.
    """
    # Before anything is computed: a device that is not there shows now.
    here = machine(scenario, today)
    told = reporter or LogReporter()
    inner = Quietly(told)
    with scratch(data_dir) as folder:
        task = ways.Task(scenario=scenario, data_dir=folder)
        told.say(f"1/{_STEPS} cached, cold: extracting, then {scenario.heads} heads of {scenario.epochs} epochs")
        cold = run_apart(ways.cold, task, inner)
        features = cold.result.features
        # Everybody else computes features as the cache does.
        task = replace(task, runner=cast("Runner", features.runner))
        told.say(f"2/{_STEPS} cached, warm: one head of {scenario.epochs} epochs")
        warm = run_apart(ways.warm, (task, cold.result.cache), inner)
        told.say(f"3/{_STEPS} end to end as a notebook does it: {_sampled(scenario)}")
        notebook = run_apart(ways.notebook, task, inner)
        told.say(f"4/{_STEPS} end to end with featcache's own speed: {_sampled(scenario)}")
        tuned = run_apart(ways.tuned, task, inner)
        told.say(f"5/{_STEPS} the same heads from a cache, for comparison")
        trained = run_apart(twins, task, inner).result
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
        agreements=tuple(compared(measured[twin.baseline].result, twin) for twin in trained),
    )


class Quietly:
    """A Reporter of what goes on inside a way: progress, and each warning once."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """Nothing: there are five ways, and each would say the same."""

    def warn(self, text: str) -> None:
        """What has not been said before."""
        if text not in self._warned:
            self._warned.add(text)
            self._reporter.warn(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """As it comes."""
        self._reporter.advance(stage, done, total, bound=bound)


def _sampled(scenario: Scenario) -> str:
    return f"{scenario.sample_images} images of each split, {scenario.sampled_epochs} epochs"


def with_memory(way: Way, process: Apart[Made]) -> Way:
    """A way, and what its process held."""
    memory = Memory(peak=process.peak_bytes, libraries=process.libraries_bytes, device=process.device_peak_bytes)
    return replace(way, memory=memory)


def machine(scenario: Scenario, today: date) -> dict[str, Any]:
    """Processor, cores, device, versions, date. Raises InvalidOption for a device that is not there."""
    place = devices.resolve_device(scenario.device)
    return devices.provenance(place) | {"cores": devices.cores(), "date": today.isoformat()}


@contextmanager
def scratch(data_dir: Path) -> Iterator[Path]:
    """A data folder without features, that shares data sets and weights with `data_dir`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="benchmark.tmp-") as name:
        for shared in ("datasets", "weights"):
            (data_dir / shared).mkdir(exist_ok=True)
            (Path(name) / shared).symlink_to((data_dir / shared).resolve(), target_is_directory=True)
        yield Path(name)
