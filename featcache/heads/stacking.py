"""Which heads stand in one stack: those of one shape, as many as is measured to be fastest.

Small heads are fastest all together, wide ones in stacks that stay in the processor's cache.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.batches import Batches
from featcache.heads.config import HeadConfig
from featcache.heads.course import Course, Source, side_by_side
from featcache.heads.lightning import balanced_weights
from featcache.heads.placement import seeded
from featcache.heads.stacked import HeadStack, Layer, StackedHead, StackShape

STACK_SIZES = (1, 4, 16, 64, 256)
# Without a trial, where all steps together take less time than one.
UNTRIED_SIZE = 64
FEWEST_STEPS_TO_TRY = 100
TRIAL_SECONDS = 0.2
_Item = TypeVar("_Item")


def stacked_groups(
    courses: Sequence[Course], sources: Sequence[Source], classes: int, size: int | None
) -> Iterator[tuple[list[list[Course]], HeadStack]]:
    """Stacks of heads of one shape, and whose heads they are: groups of one source each.

    `size`: how many heads a stack has at most; None for what is measured to be fastest.
    """
    shapes: dict[StackShape, list[Course]] = {}
    for course in courses:
        shapes.setdefault(StackShape.of(course.config), []).append(course)
    for alike in shapes.values():
        starts = _starts(alike, sources, classes)
        wanted = size or _fastest_size(alike, sources, starts)
        for groups in _rectangles(alike, wanted):
            yield groups, HeadStack([[starts[course] for course in group] for group in groups])


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
        weights = balanced_weights(batches.labels, classes) if config.class_weights == "balanced" else None
        starts[course] = StackedHead(config=config, layers=layers[config.seed], class_weights=weights)
    return starts


def _initial_layers(config: HeadConfig, batches: Batches, classes: int) -> tuple[Layer, ...]:
    shape = HeadShape(in_features=batches.feature_dim, classes=classes, hidden=config.architecture.hidden)
    with seeded(config.seed, batches.device):
        head = build_head(config.architecture, shape)
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return tuple((one.weight.detach().to(batches.device), one.bias.detach().to(batches.device)) for one in linear)


def _fastest_size(courses: Sequence[Course], sources: Sequence[Source], starts: dict[Course, StackedHead]) -> int:
    """How many heads to stack, by the seconds that a step takes them on the first batch of the first epoch."""
    steps = len(sources[0].batches) * max(course.config.max_epochs for course in courses)
    if len(courses) == 1 or steps < FEWEST_STEPS_TO_TRY:
        return UNTRIED_SIZE
    first = {source: next(sources[source].epoch(0)) for source in {course.source for course in courses}}
    taken: dict[int, float] = {}
    for size in (*(size for size in STACK_SIZES if size < len(courses)), len(courses)):
        groups = next(_rectangles(courses, size))
        heads = [[starts[course] for course in group] for group in groups]
        batch = side_by_side([first[group[0].source] for group in groups])
        taken[size] = _step_seconds(HeadStack(heads), *batch) / sum(map(len, groups))
        if size >= STACK_SIZES[-1]:
            break
    return min(taken, key=lambda size: taken[size])


def _step_seconds(stack: HeadStack, features: Tensor, labels: Tensor) -> float:
    """The quickest of a few steps; the first is not counted."""
    quickest, until = math.inf, math.inf
    for number in itertools.count():
        began = time.perf_counter()
        float(stack.step(features, labels)[0])  # which waits for the device
        ended = time.perf_counter()
        if number == 0:
            until = ended + TRIAL_SECONDS
        else:
            quickest = min(quickest, ended - began)
        if number >= 2 and (ended > until or number == 20):
            break
    return quickest
