"""Group heads of one shape into stacks that are trained as one module, of a size that is chosen by measurement.

Of one shape: equal layers, activation, batch norm, dropout, mixup, noise, optimizer and loss (`StackShape`); learning
rates and penalties may differ. Small heads are fastest all together, heads with large layers in stacks that fit in the
processor's cache. The number of torch's
threads is measured too (training/threads.py explains why).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.config import HeadConfig
from featcache.rows.batches import Batch, Batches
from featcache.rows.devices import seed_generators
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import StepRandom
from featcache.training.losses import balance_class_weights
from featcache.training.module_stack import ModuleStack
from featcache.training.stack import InitialHead, PerceptronStack, Stack, StackShape, is_own
from featcache.training.texts import linear_start, text_head
from featcache.training.threads import training_threads
from featcache.training.trial import Source, Trial, stack_batches

STACK_SIZES = (1, 4, 16, 64, 256)
# The size of stacks without a measurement, if the whole training takes less time than measuring.
UNTRIED_SIZE = 64
FEWEST_STEPS_TO_TRY = 100
TRIAL_SECONDS = 0.2
MOST_TRIAL_STEPS = 20
# All threads are used only if their time is at most this share of the time of one thread.
THREADS_GAIN = 0.9
# Below this number of multiplications in a forward pass, several threads are never faster than one.
SMALL_STEP = 2_000_000
Groups = list[list[Trial]]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How heads of one shape are trained.

    Attributes:
        size: The most heads in a stack; None for the fastest number.
        threads: Torch's threads on the CPU; None for the fastest number, and on other devices.
        seconds: Measured time of a step per head.
    """

    size: int | None = None
    threads: int | None = None
    seconds: float = 0.0


def form_stacks(
    trials: Sequence[Trial], sources: Sequence[Source], target: HeadTarget, setting: Setting
) -> tuple[list[tuple[Groups, Stack]], int | None]:
    """Group the heads of all trials into stacks, and choose the number of threads.

    Each stack comes with its trials, as groups of one source each. Heads of several shapes are trained with the number
    of threads that is best for those that take longest; None on other devices than the CPU.
    """
    shapes: dict[StackShape, list[Trial]] = {}
    for trial in trials:
        shapes.setdefault(StackShape.of(trial.config), []).append(trial)
    stacks: list[tuple[Groups, Stack]] = []
    settings = []
    first: dict[int, Batch] = {}
    for shape, alike in shapes.items():
        starts = _InitialHeads(sources, target, first)
        chosen = _fastest(alike, starts, setting if shape.own is None else replace(setting, size=1))
        settings.append((chosen.seconds * len(alike), chosen.threads))
        stacks += [(groups, starts.stack(groups)) for groups in _rectangles(alike, chosen.size or len(alike))]
    return stacks, max(settings, key=lambda each: each[0])[1]


def stack_of(groups: Sequence[Sequence[Trial]], sources: Sequence[Source], target: HeadTarget) -> Stack:
    """One stack of exactly these trials, untrained and without a measurement, to restore a checkpoint into.

    (`form_stacks` divides trials into stacks, and measures.)
    """
    return _InitialHeads(sources, target, {}).stack(groups)


class _InitialHeads:
    """Creates stacks of heads with their initial weights, which are the same as if each were trained alone."""

    def __init__(self, sources: Sequence[Source], target: HeadTarget, first: dict[int, Batch]) -> None:
        self.sources, self._target, self._first = sources, target, first
        self._tensors: dict[tuple[int, str, int], dict[str, Tensor]] = {}
        self._weights: dict[int, Tensor] = {}

    def stack(self, groups: Sequence[Sequence[Trial]]) -> Stack:
        """A stack of the heads of these trials."""
        kind = ModuleStack if is_own(groups[0][0].config) else PerceptronStack
        return kind([[self._head(trial) for trial in group] for group in groups], self._target)

    def first_batch(self, groups: Sequence[Sequence[Trial]]) -> Batch:
        """The first batch of the first epoch, for heads in these groups."""
        for source in {group[0].source for group in groups} - self._first.keys():
            self._first[source] = next(self.sources[source].epoch(0))
        return stack_batches([self._first[group[0].source] for group in groups])

    def _head(self, trial: Trial) -> InitialHead:
        config, source = trial.config, self.sources[trial.source]
        batches = source.batches
        if is_own(config):
            # Training changes a module in place, so each stack needs a new one.
            return InitialHead(config=config, tensors={}, module=initial_module(config, batches, self._target))
        # A head that begins at texts depends on the rows too, by their standardisation.
        key = (config.seed, *((config.head, trial.source) if config.architecture.templates else ("", 0)))
        if key not in self._tensors:
            self._tensors[key] = initial_tensors(config, source, self._target)
        weights = self._class_weights(trial.source, batches) if config.class_weights == "balanced" else None
        return InitialHead(config=config, tensors=self._tensors[key], class_weights=weights)

    def _class_weights(self, source: int, batches: Batches) -> Tensor:
        if source not in self._weights:
            self._weights[source] = balance_class_weights(batches.targets, self._target)
        return self._weights[source]


def initial_tensors(config: HeadConfig, source: Source, target: HeadTarget) -> dict[str, Tensor]:
    """The initial tensors of a head by name, on the device of its batches: drawn from its seed, or made from texts."""
    batches = source.batches
    if config.architecture.templates:
        text = text_head(config.architecture, batches.rows, target)
        start = linear_start(text, batches.rows, source.scaling.features)
        return {name: torch.from_numpy(tensor).to(batches.device) for name, tensor in start.items()}
    head = initial_module(config, batches, target)
    state = {name: tensor.detach().to(batches.device) for name, tensor in head.state_dict().items()}
    # This count of batches has no effect.
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def initial_module(config: HeadConfig, batches: Batches, target: HeadTarget) -> nn.Module:
    """The head with initial weights, drawn from its seed, on the device of its batches."""
    with seed_generators(config.seed, batches.device):
        head = build_head(config.architecture, head_shape(config, batches.feature_dim, target.outputs))
    return head.to(batches.device)


def head_shape(config: HeadConfig, in_features: int, outputs: int) -> HeadShape:
    """The shape of the head of `config`, from which it is built."""
    return HeadShape(
        in_features=in_features,
        classes=outputs,
        hidden=config.architecture.hidden,
        activation=config.activation,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        own=config.own,
    )


def _rectangles(trials: Sequence[Trial], size: int) -> Iterator[Groups]:
    """The trials as groups of one source each, for stacks of at most `size` heads."""
    by_source: dict[int, list[Trial]] = {}
    for trial in trials:
        by_source.setdefault(trial.source, []).append(trial)
    members = {len(group) for group in by_source.values()}
    together = size // max(members)
    if len(members) == 1 and together > 1:
        yield from ([*groups] for groups in _chunks(list(by_source.values()), together))
    else:
        yield from ([list(part)] for group in by_source.values() for part in _chunks(group, size))


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _fastest(trials: Sequence[Trial], starts: _InitialHeads, setting: Setting) -> Setting:
    """The size of stacks and number of threads with the fastest step per head, on the first batch of epoch 0."""
    sources = starts.sources
    steps = len(sources[0].batches) * max(trial.config.max_epochs for trial in trials)
    sizes = [*(size for size in STACK_SIZES if size < len(trials)), len(trials)][: len(STACK_SIZES)]
    if setting.size is not None:
        sizes = [setting.size]
    elif steps < FEWEST_STEPS_TO_TRY:
        sizes = [min(sizes[-1], UNTRIED_SIZE)]
    tried = []
    for size in sizes:
        groups = next(_rectangles(trials, size))
        stack = starts.stack(groups)
        rows = min(sources[0].batches.batch_size, sources[0].batches.epoch_rows)
        counts = (setting.threads,) if setting.threads else _thread_counts(stack, rows)
        if len(sizes) == 1 and (len(counts) == 1 or steps < FEWEST_STEPS_TO_TRY):
            return replace(setting, size=size, threads=counts[0])
        for count in counts:
            with training_threads(count):
                seconds = step_seconds(stack, *starts.first_batch(groups)) / stack.heads
            tried.append(Setting(size=size, threads=count, seconds=seconds))
    return min(tried, key=lambda each: each.seconds / (THREADS_GAIN if (each.threads or 1) > 1 else 1))


def _thread_counts(stack: Stack, rows: int) -> tuple[int | None, ...]:
    """The numbers of threads to try: one, and all of torch's threads if a step is large enough to gain from them."""
    everything = torch.get_num_threads()
    if stack.device.type != "cpu":
        return (None,)
    return (1, everything) if everything > 1 and rows * stack.weights >= SMALL_STEP else (1,)


def step_seconds(stack: Stack, features: Tensor, targets: Tensor) -> float:
    """The mean time of a few steps, in seconds; the first step is not counted."""
    random = StepRandom([0] * stack.groups, 0, 0, stack.device) if stack.draws else None
    stack.step(features, targets, random)
    began, steps, passed = time.perf_counter(), 0, 0.0
    while steps < MOST_TRIAL_STEPS and passed < TRIAL_SECONDS:
        float(stack.step(features, targets, random)[0])  # waits for the device
        steps, passed = steps + 1, time.perf_counter() - began
    return passed / steps
