"""Heads are trained by steps: one, or many over the same batches. Each batch is read and converted once for all.

    trials = [Trial(config, source=0) for config in configs]
    Engine(trials, [Source(batches=...)], val, target=target, interruption=interruption).train()
    trials[3].val, trials[3].best

Every head has early stopping and a best epoch of its own: one that is over leaves its stack and changes no more.
Stacks take turns on blocks of batches, so that they find their weights still in the processor's cache.
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
from featcache.training.judging import EpochScores
from featcache.training.stack import Stack
from featcache.training.stacking import Setting, formed, stack_of
from featcache.training.threads import training_threads
from featcache.training.trial import Source, Trial, side_by_side

# What batches that stacks take turns on may take as float32, and what a block of val may while it is judged.
BLOCK_BYTES = 16 << 20
JUDGED_BYTES = 64 << 20
ADVANCED_EVERY_S = 0.5

Advance = Callable[[float], None]
EpochEnded = Callable[[Trial, EpochRecord], None]


class Engine:
    """Trains trials to their ends.

    Args:
        trials: The heads; all have the same batch size, width of features and kind of standardising.
        sources: What they learn from.
        val: What they are judged on after every epoch.
        target: What they learn.
        interruption: How Ctrl-C arrives.
        advance: Called now and then with the share of the present epoch that is done.
        epoch_ended: Called with each trial that has finished an epoch.
        checkpoint: Called after every epoch, for `state`.
        setting: Of stacks and threads; None for what is measured to be fastest.
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
        self._teams: list[_Team] = []
        self._epoch = 0
        self.threads: int | None = None

    def train(self) -> tuple[int, ...]:
        """Train every head to its end; the sizes of the stacks.

        Raises KeyboardInterrupt after a Ctrl-C: finished epochs are in the trials.
        """
        if not self._teams:
            self._form()
        sizes = tuple(len(team.trials) for team in self._teams)
        with training_threads(self.threads):
            while self._narrow():
                ended = self._train_epoch()
                self._epoch += 1
                if self._checkpoint is not None:
                    self._checkpoint()
                if self._epoch_ended is not None:
                    for trial, record in ended:
                        self._epoch_ended(trial, record)
                self._clock.stop_if_asked()
        return sizes

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that the next epoch depends on, and all that is known of the past ones: JSON values, and tensors."""
        numbers = {id(trial): number for number, trial in enumerate(self.trials)}
        progress = {
            "epoch": self._epoch,
            "threads": self.threads,
            "trials": [trial.progress() for trial in self.trials],
            "stacks": [[[numbers[id(trial)] for trial in group] for group in team.groups] for team in self._teams],
        }
        tensors = {
            f"stack.{n}.{name}": one for n, team in enumerate(self._teams) for name, one in team.stack.state().items()
        }
        best = {f"best.{n}.{name}": one for n, trial in enumerate(self.trials) for name, one in trial.best.items()}
        return progress, {name: tensor.cpu() for name, tensor in (tensors | best).items()}

    def restore(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from such a state. Raises HeadError for one of other heads."""
        try:
            for number, (trial, reached) in enumerate(zip(self.trials, progress["trials"], strict=True)):
                best = _part(tensors, f"best.{number}.")
                trial.resume(reached, {name: tensor.to(self.val.device, copy=True) for name, tensor in best.items()})
            self._epoch, self.threads = progress["epoch"], progress["threads"]
            for number, numbers in enumerate(progress["stacks"]):
                groups = [[self.trials[one] for one in group] for group in numbers]
                team = _Team(groups, stack_of(groups, self.sources, self.target), self.sources)
                team.stack.restore(_part(tensors, f"stack.{number}."), [trial.rate for trial in team.trials])
                self._teams.append(team)
        except (RuntimeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise HeadError(f"the checkpoint does not fit this training: {error}", hint="train again") from error
        self._clock.interruption.keeping = True

    def _form(self) -> None:
        stacks, self.threads = formed(self.trials, self.sources, self.target, self._setting)
        for trial in self.trials:
            trial.threads = self.threads
        # Nobody else holds the stacks: one that shrinks gives its memory back.
        self._teams = [_Team(*stacks.pop(0), self.sources) for _ in range(len(stacks))]

    def _narrow(self) -> bool:
        """Leave out the heads that are over; whether any are left."""
        self._teams[:] = [team for team in (team.without_those_over() for team in self._teams) if team is not None]
        return bool(self._teams)

    def _train_epoch(self) -> list[tuple[Trial, EpochRecord]]:
        began = time.perf_counter()
        for team in self._teams:
            team.begin()
        self._steps()
        scores = _judged(self._teams, self.sources, self.val, self.target)
        left = sum(not trial.over for team in self._teams for trial in team.trials)
        share = (time.perf_counter() - began) / left
        ended = [
            one for team, some in zip(self._teams, scores, strict=True) for one in team.take(self._epoch, some, share)
        ]
        if ended:
            self._clock.interruption.keeping = True
        return ended

    def _steps(self) -> None:
        used = sorted({source for team in self._teams for source in team.sources})
        total = len(self.sources[0].batches)
        step = 0
        for block in _blocks(used, self.sources, self._epoch, alone=len(self._teams) == 1):
            for team in self._teams:
                for number, batches in enumerate(block):
                    team.step(*side_by_side([batches[source] for source in team.sources]), self._epoch, step + number)
                    self._clock.stop_if_asked()
            step += len(block)
            self._clock.advance(step / total)


class _Team:
    """A stack, and the trials whose heads stand in it: G groups of K, a source a group."""

    def __init__(self, groups: Sequence[Sequence[Trial]], stack: Stack, sources: Sequence[Source]) -> None:
        self.groups = groups
        self.stack = stack
        self.sources = tuple(group[0].source for group in groups)
        self.trials = [trial for group in groups for trial in group]
        self._seeds = [sources[source].batches.seed for source in self.sources]
        self._all_sources = sources
        self._losses = torch.zeros(len(self.trials), device=stack.device)
        self._rows = 0

    def begin(self) -> None:
        """A new epoch."""
        self.stack.set_rates([trial.rate for trial in self.trials])
        self._losses.zero_()
        self._rows = 0

    def step(self, features: Tensor, targets: Tensor, epoch: int, number: int) -> None:
        """One step of all heads."""
        rows = targets.shape[1]
        if self.stack.normed and self._rows and rows < SMALLEST_NORMED_BATCH:
            # The last rows of an epoch, too few to be normalized among each other: they come again in the next.
            return
        random = StepRandom(self._seeds, epoch, number, self.stack.device) if self.stack.draws else None
        self._losses += self.stack.step(features, targets, random) * rows
        self._rows += rows

    def take(self, epoch: int, scores: Sequence[Score], seconds: float) -> Iterator[tuple[Trial, EpochRecord]]:
        """The end of an epoch: `scores` are those on val, `seconds` a head's share of it. Gives what was finished."""
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
                trial.take(record, partial(self.stack.tensors_of, number))
                if trial.trouble is None:
                    yield trial, record

    def without_those_over(self) -> _Team | None:
        """This team, or a smaller one where the stack can be smaller; None where all are over."""
        numbers = itertools.count()
        groups = [[(next(numbers), trial) for trial in group] for group in self.groups]
        left = [group for group in groups if not all(trial.over for _, trial in group)]
        if not left:
            return None
        members = max(sum(not trial.over for _, trial in group) for group in left)
        if (len(left), members) == (self.stack.groups, self.stack.members):
            return self
        # A group with fewer than the others keeps some that are over: their scores are not looked at.
        kept = [sorted(group, key=lambda seat: seat[1].over)[:members] for group in left]
        stack = self.stack.narrowed([[number for number, _ in group] for group in kept])
        return _Team([[trial for _, trial in group] for group in kept], stack, self._all_sources)


class _Clock:
    """Looks for Ctrl-C, and says now and then how far the epoch is."""

    def __init__(self, advance: Advance | None, interruption: Interruption) -> None:
        self._advance, self.interruption = advance, interruption
        self._next = time.monotonic()

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C."""
        if self.interruption.requested:
            raise KeyboardInterrupt

    def advance(self, share: float) -> None:
        """`share` of the epoch is done."""
        if self._advance is not None and time.monotonic() >= self._next:
            self._advance(share)
            self._next = time.monotonic() + ADVANCED_EVERY_S


# --- batches and val ---------------------------------------------------------------------------------------


def _blocks(
    used: Sequence[int], sources: Sequence[Source], epoch: int, *, alone: bool
) -> Iterator[list[dict[int, Batch]]]:
    """Batches by source, standardised, as many at a time as stay near the processor."""
    first = sources[0].batches
    batch_bytes = 4 * first.feature_dim * first.batch_size * len(used)
    several = 1 if alone else max(1, BLOCK_BYTES // batch_bytes)
    coming = zip(*(sources[source].epoch(epoch, reuse=alone) for source in used), strict=True)
    while block := [dict(zip(used, batches, strict=True)) for batches in itertools.islice(coming, several)]:
        yield block


def _judged(teams: Sequence[_Team], sources: Sequence[Source], val: Batches, target: HeadTarget) -> list[list[Score]]:
    """Score on val of every head of every team."""
    scaled_by = {id(source.scaling): source.scaling for source in sources}
    found = [EpochScores(team.stack, target, len(val.rows)) for team in teams]
    rows = max(1, JUDGED_BYTES // (4 * max(_width(team, val.feature_dim) for team in teams)))
    for features, targets in _pieces(val, rows):
        seen = {key: (one.standardised(features), one.scaled(targets)) for key, one in scaled_by.items()}
        for team, scores in zip(teams, found, strict=True):
            own = [seen[id(sources[source].scaling)] for source in team.sources]
            scores.add(team.stack.outputs(_views([some for some, _ in own])), _views([some for _, some in own]))
    return [scores.scores() for scores in found]


def _pieces(val: Batches, rows: int) -> Iterator[Batch]:
    for features, targets in val.in_order(reuse=True):
        yield from zip(torch.split(features, rows), torch.split(targets, rows), strict=True)


def _views(values: Sequence[Tensor]) -> Tensor:
    # Groups that see the same rows share them.
    same = all(one is values[0] for one in values)
    return values[0][None] if same else torch.stack(list(values))


def _width(team: _Team, feature_dim: int) -> int:
    # float32 values a row of val becomes, at its widest.
    widest = max((*team.stack.shape.hidden, team.stack.target.outputs))
    return max(len(team.trials) * widest, len(team.sources) * feature_dim)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}
