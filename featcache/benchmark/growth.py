"""Measures the time of every way against the number of images; end to end only up to the sample's size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from featcache.benchmark import ways
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, GrowthResult, Point, Way
from featcache.benchmark.run import QuietReporter, machine, scratch
from featcache.benchmark.scenarios import Scenario
from featcache.extraction.processes import run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter

SIZES = (1000, 2000, 4000, 8000, 16000)


def run_growth(
    scenario: Scenario,
    *,
    data_dir: Path,
    command: str,
    today: date,
    reporter: Reporter | None = None,
    sizes: Sequence[int] = SIZES,
) -> GrowthResult:
    """Measure at every size up to the scenario's images; end to end up to its sample, scaled beyond.

    Raises FeatcacheError as `run_benchmark` does.
    """
    # First, so that a missing device raises before anything is computed.
    here = machine(scenario, today)
    outer = reporter or LogReporter()
    inner = QuietReporter(outer)
    points: list[Point] = []
    measured = [size for size in sizes if size <= scenario.images] or [scenario.images]
    for number, size in enumerate(measured, start=1):
        outer.info(f"{number}/{len(measured)} {size} images")
        one = replace(scenario, images=size, sample=None, sample_epochs=scenario.sampled_epochs)
        # One folder for each size, so that rows of a smaller size are not reused.
        with scratch(data_dir) as folder:
            points += _measure_size(
                ways.Task(scenario=one, data_dir=folder), inner, end_to_end=size <= scenario.sample_images
            )
    return GrowthResult(
        command=command,
        machine=here,
        scenario=scenario,
        points=tuple(points + _scale_points(points, measured)),
    )


def _measure_size(task: ways.Task, reporter: Reporter, *, end_to_end: bool) -> list[Point]:
    size = task.scenario.images
    cold = run_in_new_process(ways.measure_cold, task, reporter).result.way
    warm_s = statistics.median(cold.epoch_s)
    points = [
        Point(way=COLD, images=size, seconds=cold.setup_s + warm_s, scaled=False),
        Point(way=WARM, images=size, seconds=warm_s, scaled=False),
    ]
    if end_to_end:
        for name, function in ((NOTEBOOK, ways.measure_notebook), (TUNED, ways.measure_tuned)):
            way: Way = run_in_new_process(function, task, reporter).result.way
            points.append(Point(way=name, images=size, seconds=statistics.median(way.epoch_s), scaled=False))
    return points


def _scale_points(points: Sequence[Point], sizes: Sequence[int]) -> list[Point]:
    """End to end at the sizes that were not measured, scaled by images from the largest measured size."""
    added = []
    for name in (NOTEBOOK, TUNED):
        known = [point for point in points if point.way == name]
        if known:
            largest = max(known, key=lambda point: point.images)
            added += [
                replace(largest, images=size, seconds=largest.seconds * size / largest.images, scaled=True)
                for size in sizes
                if size > largest.images
            ]
    return added
