"""Which heads stand in one stack: those of one shape, as many as is measured to be fastest.

Small heads are fastest all together, wide ones in stacks that stay in the processor's cache. With how many of torch's
threads they train is measured with it (training/threads.py says why that matters).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.config import HeadConfig
from featcache.rows.batches import Batches
from featcache.rows.devices import seeded
from featcache.training.course import Course, Source, side_by_side
from featcache.training.lightning import balanced_weights
from featcache.training.stacked import HeadStack, Layer, StackedHead, StackShape
from featcache.training.threads import SMALL_STEP, training_threads

STACK_SIZES = (1, 4, 16, 64, 256)
# Without a trial, where all steps together take less time than one.
UNTRIED_SIZE = 64
FEWEST_STEPS_TO_TRY = 100
TRIAL_SECONDS = 0.2
MOST_TRIAL_STEPS = 20
THREADS_GAIN = 0.9
Stacked = tuple[list[list[Course]], HeadStack]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How heads of one shape train: so many in a stack, with so many threads. `seconds`: what a step took a head."""

    size: int
    threads: int | None
    seconds: float = 0.0


def stacked(
    courses: Sequence[Course],
    sources: Sequence[Source],
    classes: int,
    *,
    size: int | None = None,
    threads: int | None = None,
) -> tuple[list[Stacked], int | None]:
    """The heads of all courses in stacks of at most `size`, trained by `threads`; None for what is fastest.

    Each stack comes with the courses whose heads stand in it, as groups of one source each; then the number of
    threads (None where it is not the CPU). Heads of several shapes train with that of those that take longest.
    """
    shapes: dict[StackShape, list[Course]] = {}
    for course in courses:
        shapes.setdefault(StackShape.of(course.config), []).append(course)
    stacks: list[Stacked] = []
    settings = []
    for alike in shapes.values():
        starts = _starts(alike, sources, classes)
        setting = Setting(size=size, threads=threads) if size else _fastest(alike, sources, starts, threads)
        settings.append((setting.seconds * len(alike), setting.threads))
        stacks += [(groups, _stack(groups, starts)) for groups in _rectangles(alike, setting.size)]
    return stacks, max(settings, key=lambda each: each[0])[1]


def _stack(groups: Sequence[Sequence[Course]], starts: Mapping[Course, StackedHead]) -> HeadStack:
    return HeadStack([[starts[course] for course in group] for group in groups])


def _rectangles(courses: Sequence[Course], size: int) -> Iterator[list[list[Course]]]:
    """The courses as groups of one source each, for stacks of at most `size` heads."""
    by_source: dict[int, list[Course]] = {}
    for course in courses:
        by_source.setdefault(course.source, []).append(course)
    members = {len(group) for group in by_source.values()}
    together = size // max(members)
    if len(members) == 1 and together > 1:
        yield from ([*groups] for groups in _chunks(list(by_source.values()), together))
    else:
        yield from ([list(part)] for group in by_source.values() for part in _chunks(group, size))


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _starts(courses: Sequence[Course], sources: Sequence[Source], classes: int) -> dict[Course, StackedHead]:
    """Initial weights: those that train_head would begin with."""
    layers: dict[int, tuple[Layer, ...]] = {}
    starts = {}
    for course in courses:
        config, batches = course.config, sources[course.source].batches
        if config.seed not in layers:
            layers[config.seed] = _initial_layers(config, batches, classes)
        weights = balanced_weights(batches.targets, classes) if config.class_weights == "balanced" else None
        starts[course] = StackedHead(config=config, layers=layers[config.seed], class_weights=weights)
    return starts


def _initial_layers(config: HeadConfig, batches: Batches, classes: int) -> tuple[Layer, ...]:
    shape = HeadShape(in_features=batches.feature_dim, classes=classes, hidden=config.architecture.hidden)
    with seeded(config.seed, batches.device):
        head = build_head(config.architecture, shape)
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return tuple((one.weight.detach().to(batches.device), one.bias.detach().to(batches.device)) for one in linear)


def _fastest(
    courses: Sequence[Course], sources: Sequence[Source], starts: Mapping[Course, StackedHead], threads: int | None
) -> Setting:
    """By the seconds that steps take a head, on the first batch of the first epoch."""
    steps = len(sources[0].batches) * max(course.config.max_epochs for course in courses)
    sizes = [*(size for size in STACK_SIZES if size < len(courses)), len(courses)][: len(STACK_SIZES)]
    if steps < FEWEST_STEPS_TO_TRY:
        return _untried(courses, sources, starts, min(sizes[-1], UNTRIED_SIZE), threads)
    first = {source: next(sources[source].epoch(0)) for source in {course.source for course in courses}}
    tried = []
    for size in sizes:
        groups = next(_rectangles(courses, size))
        stack = _stack(groups, starts)
        batch = side_by_side([first[group[0].source] for group in groups])
        for count in (threads,) if threads else _thread_counts(stack, len(batch[1][0])):
            with training_threads(count):
                seconds = _step_seconds(stack, *batch) / (stack.groups * stack.members)
            tried.append(Setting(size=size, threads=count, seconds=seconds))
    # All threads have to be clearly faster, or one is taken.
    return min(tried, key=lambda each: each.seconds / (THREADS_GAIN if (each.threads or 1) > 1 else 1))


def _untried(
    courses: Sequence[Course],
    sources: Sequence[Source],
    starts: Mapping[Course, StackedHead],
    size: int,
    threads: int | None,
) -> Setting:
    groups = next(_rectangles(courses, size))
    stack = _stack(groups, starts)
    counts = _thread_counts(stack, sources[0].batches.batch_size)
    return Setting(size=size, threads=threads or counts[0])


def _thread_counts(stack: HeadStack, rows: int) -> tuple[int | None, ...]:
    """What is worth trying: one thread, and all that torch has now where a step is large enough to share."""
    everything = torch.get_num_threads()
    if stack.device.type != "cpu":
        return (None,)
    return (1, everything) if everything > 1 and rows * stack.weights >= SMALL_STEP else (1,)


def _step_seconds(stack: HeadStack, features: Tensor, labels: Tensor) -> float:
    """The mean of a few steps; the first is not counted."""
    stack.step(features, labels)
    began, steps, passed = time.perf_counter(), 0, 0.0
    while steps < MOST_TRIAL_STEPS and passed < TRIAL_SECONDS:
        float(stack.step(features, labels)[0])  # which waits for the device
        steps, passed = steps + 1, time.perf_counter() - began
    return passed / steps
