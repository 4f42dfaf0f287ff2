"""Train one or many heads by gradient steps on the same batches; each batch is read and converted once for all heads.

    trials = [Trial(config, source=0) for config in configs]
    Engine(trials, [Source(batches=...)], val, target=target, interruption=interruption).train()
    trials[3].val, trials[3].best

Heads of one shape are batched in stacks (training/stack.py). Every head has its own early stopping and its own best
epoch: a head that is over is removed from its stack. Stacks take turns on blocks of batches, so that weights stay in
the processor's cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.config import SMALLEST_NORMED_BATCH
from featcache.heads.records import EpochRecord, Score
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batch, Batches
from featcache.rows.target import HeadTarget
from featcache.training.augmentation import StepRandom
from featcache.training.epoch_scores import EpochScores
from featcache.training.stack import Stack
from featcache.training.stacking import Setting, form_stacks, stack_of
from featcache.training.threads import training_threads
from featcache.training.trial import Source, Trial, stack_batches

# Size, as float32, of a block of batches that stacks take turns on, and of a block of val.
BLOCK_BYTES = 16 << 20
VAL_BYTES = 64 << 20
PROGRESS_EVERY_S = 0.5

Advance = Callable[[float], None]
EpochEnded = Callable[[Trial, EpochRecord], None]


class Engine:
    """Trains all trials to their ends.

    Args:
        trials: The heads; all have the same batch size, number of features and kind of standardisation.
        sources: The train rows, in the orders of the trials' seeds.
        val: The val rows, on which heads are evaluated after every epoch.
        target: The target.
        interruption: Handles Ctrl-C.
        advance: Called at intervals with the share of the current epoch that is done.
        epoch_ended: Called with each trial that has finished an epoch, and the record of that epoch.
        checkpoint: Called after every epoch; it can call `state`.
        setting: Size of stacks, and number of threads; None for the fastest by measurement.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        sources: Sequence[Source],
        val: Batches,
        *,
        target: HeadTarget,
        interruption: Interruption,
        advance: Advance | None = None,
        epoch_ended: EpochEnded | None = None,
        checkpoint: Callable[[], None] | None = None,
        setting: Setting | None = None,
    ) -> None:
        self.trials, self.sources, self.val, self.target = trials, sources, val, target
        self._clock = _Clock(advance, interruption)
        self._epoch_ended, self._checkpoint = epoch_ended, checkpoint
        self._setting = setting or Setting()
        self._stacks: list[_TrialStack] = []
        self._epoch = 0
        self.threads: int | None = None

    def train(self) -> tuple[int, ...]:
        """Train every head to its end, and return the sizes of the stacks.

        Raises KeyboardInterrupt after a Ctrl-C: the trials have the epochs that were finished.
        """
        if not self._stacks:
            self._form_stacks()
        sizes = tuple(len(stack.trials) for stack in self._stacks)
        with training_threads(self.threads):
            while self._remove_finished():
                ended = self._train_epoch()
                self._epoch += 1
                if self._checkpoint is not None:
                    self._checkpoint()
                if self._epoch_ended is not None:
                    for trial, record in ended:
                        self._epoch_ended(trial, record)
                self._clock.stop_if_requested()
        return sizes

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state that the next epoch depends on, and the results of past epochs: JSON values, and tensors."""
        numbers = {id(trial): number for number, trial in enumerate(self.trials)}
        progress = {
            "epoch": self._epoch,
            "threads": self.threads,
            "trials": [trial.progress() for trial in self.trials],
            "stacks": [[[numbers[id(trial)] for trial in group] for group in stack.groups] for stack in self._stacks],
        }
        tensors = {
            f"stack.{n}.{name}": one
            for n, stack in enumerate(self._stacks)
            for name, one in stack.heads.state().items()
        }
        best = {f"best.{n}.{name}": one for n, trial in enumerate(self.trials) for name, one in trial.best.items()}
        return progress, {name: tensor.cpu() for name, tensor in (tensors | best).items()}

    def restore(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore such a state. Raises HeadError if it does not fit these heads."""
        try:
            for number, (trial, reached) in enumerate(zip(self.trials, progress["trials"], strict=True)):
                best = _part(tensors, f"best.{number}.")
                trial.resume(reached, {name: tensor.to(self.val.device, copy=True) for name, tensor in best.items()})
            self._epoch, self.threads = progress["epoch"], progress["threads"]
            for number, numbers in enumerate(progress["stacks"]):
                groups = [[self.trials[one] for one in group] for group in numbers]
                stack = _TrialStack(groups, stack_of(groups, self.sources, self.target), self.sources)
                stack.heads.restore(_part(tensors, f"stack.{number}."), [trial.rate for trial in stack.trials])
                self._stacks.append(stack)
        except (RuntimeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise HeadError(f"the checkpoint does not fit this training: {error}", hint="train again") from error
        self._clock.interruption.has_result = True

    def _form_stacks(self) -> None:
        stacks, self.threads = form_stacks(self.trials, self.sources, self.target, self._setting)
        for trial in self.trials:
            trial.threads = self.threads
        # Popped, so that there is no other reference to a stack: when it shrinks, its memory is freed.
        self._stacks = [_TrialStack(*stacks.pop(0), self.sources) for _ in range(len(stacks))]

    def _remove_finished(self) -> bool:
        """Remove the heads that are over, and return whether any are left."""
        self._stacks[:] = [left for left in (stack.without_finished() for stack in self._stacks) if left is not None]
        return bool(self._stacks)

    def _train_epoch(self) -> list[tuple[Trial, EpochRecord]]:
        began = time.perf_counter()
        for stack in self._stacks:
            stack.begin_epoch()
        self._steps()
        scores = _evaluate_val(self._stacks, self.sources, self.val, self.target)
        left = sum(not trial.over for stack in self._stacks for trial in stack.trials)
        share = (time.perf_counter() - began) / left
        ended = [
            one
            for stack, some in zip(self._stacks, scores, strict=True)
            for one in stack.end_epoch(self._epoch, some, share)
        ]
        if ended:
            self._clock.interruption.has_result = True
        return ended

    def _steps(self) -> None:
        used = sorted({source for stack in self._stacks for source in stack.sources})
        total = len(self.sources[0].batches)
        step = 0
        for block in _blocks(used, self.sources, self._epoch, alone=len(self._stacks) == 1):
            for stack in self._stacks:
                for number, batches in enumerate(block):
                    features, targets = stack_batches([batches[source] for source in stack.sources])
                    stack.step(features, targets, self._epoch, step + number)
                    self._clock.stop_if_requested()
            step += len(block)
            self._clock.advance(step / total)


class _TrialStack:
    """A stack of heads together with their trials: G groups of K, one source per group."""

    def __init__(self, groups: Sequence[Sequence[Trial]], heads: Stack, sources: Sequence[Source]) -> None:
        self.groups = groups
        self.heads = heads
        self.sources = tuple(group[0].source for group in groups)
        self.trials = [trial for group in groups for trial in group]
        self._seeds = [sources[source].batches.seed for source in self.sources]
        self._all_sources = sources
        self._losses = torch.zeros(len(self.trials), device=heads.device)
        self._rows = 0

    def begin_epoch(self) -> None:
        """Set the learning rates of a new epoch, and reset its sums."""
        self.heads.set_rates([trial.rate for trial in self.trials])
        self._losses.zero_()
        self._rows = 0

    def step(self, features: Tensor, targets: Tensor, epoch: int, number: int) -> None:
        """Train all heads on one batch."""
        rows = targets.shape[1]
        if self.heads.has_batch_norm and self._rows and rows < SMALLEST_NORMED_BATCH:
            # The last batch of an epoch has too few rows for batch norm; they are used in the next epoch.
            return
        random = StepRandom(self._seeds, epoch, number, self.heads.device) if self.heads.draws else None
        self._losses += self.heads.step(features, targets, random) * rows
        self._rows += rows

    def end_epoch(self, epoch: int, scores: Sequence[Score], seconds: float) -> Iterator[tuple[Trial, EpochRecord]]:
        """Record the epoch in the trials, and yield those that are finite, with their records.

        `scores`: on val, one per head. `seconds`: the share of one head in the time of the epoch.
        """
        for number, (trial, loss, score) in enumerate(zip(self.trials, self._losses.tolist(), scores, strict=True)):
            if not trial.over:
                record = EpochRecord(
                    epoch=epoch + 1,
                    max_epochs=trial.config.max_epochs,
                    train_loss=loss / self._rows,
                    val_loss=score.loss,
                    val_score=score.value,
                    seconds=seconds,
                    rate=trial.rate,
                )
                trial.add_epoch(record, partial(self.heads.tensors_of, number))
                if trial.trouble is None:
                    yield trial, record

    def without_finished(self) -> _TrialStack | None:
        """This stack, or a smaller one if heads that are over can be removed; None if all are over."""
        numbers = itertools.count()
        groups = [[(next(numbers), trial) for trial in group] for group in self.groups]
        left = [group for group in groups if not all(trial.over for _, trial in group)]
        if not left:
            return None
        members = max(sum(not trial.over for _, trial in group) for group in left)
        if (len(left), members) == (self.heads.groups, self.heads.members):
            return self
        # All groups have equally many heads, so a group may keep some that are over; their scores are not used.
        kept = [sorted(group, key=lambda numbered: numbered[1].over)[:members] for group in left]
        heads = self.heads.select([[number for number, _ in group] for group in kept])
        return _TrialStack([[trial for _, trial in group] for group in kept], heads, self._all_sources)


class _Clock:
    """Checks for Ctrl-C, and reports the progress of the epoch at intervals."""

    def __init__(self, advance: Advance | None, interruption: Interruption) -> None:
        self._advance, self.interruption = advance, interruption
        self._next = time.monotonic()

    def stop_if_requested(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C."""
        if self.interruption.requested:
            raise KeyboardInterrupt

    def advance(self, share: float) -> None:
        """Report that this share of the epoch is done, if the last report is old enough."""
        if self._advance is not None and time.monotonic() >= self._next:
            self._advance(share)
            self._next = time.monotonic() + PROGRESS_EVERY_S


# --- batches and val ---------------------------------------------------------------------------------------


def _blocks(
    used: Sequence[int], sources: Sequence[Source], epoch: int, *, alone: bool
) -> Iterator[list[dict[int, Batch]]]:
    """Standardised batches by source, in blocks that fit in the processor's cache."""
    first = sources[0].batches
    batch_bytes = 4 * first.feature_dim * first.batch_size * len(used)
    several = 1 if alone else max(1, BLOCK_BYTES // batch_bytes)
    coming = zip(*(sources[source].epoch(epoch, reuse=alone) for source in used), strict=True)
    while block := [dict(zip(used, batches, strict=True)) for batches in itertools.islice(coming, several)]:
        yield block


def _evaluate_val(
    stacks: Sequence[_TrialStack], sources: Sequence[Source], val: Batches, target: HeadTarget
) -> list[list[Score]]:
    """The score on val of every head of every stack."""
    scalings = {id(source.scaling): source.scaling for source in sources}
    sums = [EpochScores(stack.heads, target, len(val.rows)) for stack in stacks]
    rows = max(1, VAL_BYTES // (4 * max(_width(stack, val.feature_dim) for stack in stacks)))
    for features, targets in _pieces(val, rows):
        scaled = {key: (one.standardise(features), one.scale_targets(targets)) for key, one in scalings.items()}
        for stack, scores in zip(stacks, sums, strict=True):
            own = [scaled[id(sources[source].scaling)] for source in stack.sources]
            scores.add(stack.heads.outputs(_by_group([some for some, _ in own])), _by_group([some for _, some in own]))
    return [scores.scores() for scores in sums]


def _pieces(val: Batches, rows: int) -> Iterator[Batch]:
    for features, targets in val.in_order(reuse=True):
        yield from zip(torch.split(features, rows), torch.split(targets, rows), strict=True)


def _by_group(values: Sequence[Tensor]) -> Tensor:
    # Groups with the same rows share one tensor.
    same = all(one is values[0] for one in values)
    return values[0][None] if same else torch.stack(list(values))


def _width(stack: _TrialStack, feature_dim: int) -> int:
    # The largest number of float32 values, in any layer, for a row of val.
    widest = max((*stack.heads.shape.hidden, stack.heads.target.outputs))
    return max(len(stack.trials) * widest, len(stack.sources) * feature_dim)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}
