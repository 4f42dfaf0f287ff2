"""Many heads trained over the same batches: each batch is read, converted and standardised once for all of them.

    courses = [Course(config, source=0) for config in configs]
    train_together(courses, [Source(batches=..., ...)], val, classes=10, interruption=interruption)
    courses[3].val, courses[3].head(...)

Every head has early stopping and a best epoch of its own: one that is over leaves the stack and changes no more.
Stacks take turns on blocks of batches, so that they find their weights still in the processor's cache.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.heads.records import EpochRecord, Score
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batch, Batches
from featcache.rows.devices import seeded
from featcache.training.course import Course, Source, side_by_side
from featcache.training.stacked import HeadStack
from featcache.training.stacking import stacked
from featcache.training.threads import training_threads

# What batches that stacks take turns on may take as float32, and what a block of val may while it is judged.
BLOCK_BYTES = 16 << 20
JUDGED_BYTES = 64 << 20
TOLD_EVERY_S = 0.5

Told = Callable[[float], None]


def train_together(
    courses: Sequence[Course],
    sources: Sequence[Source],
    val: Batches,
    *,
    classes: int,
    interruption: Interruption,
    told: Told | None = None,
    size: int | None = None,
    threads: int | None = None,
) -> tuple[int, ...]:
    """Train every course to its end; all of them have the same batch size and width of features.

    `told` is called now and then with the share of the present epoch that is done. `size`: how many heads are
    stacked, `threads`: torch's meanwhile; None for what is measured to be fastest. Returns the sizes of the stacks.
    Raises KeyboardInterrupt after a Ctrl-C: finished epochs stand in the courses.
    """
    # From here on a Ctrl-C is looked at where nothing is half done.
    interruption.keeping = True
    # Dropout draws from torch's own generators, which are the caller's.
    with seeded(courses[0].config.seed, val.device):
        formed, count = stacked(courses, sources, classes, size=size, threads=threads)
        # Nobody else holds the stacks: one that shrinks gives its memory back.
        teams = [_Team(*formed.pop(0)) for _ in range(len(formed))]
        sizes = tuple(len(team.courses) for team in teams)
        for course in courses:
            course.threads = count
        with training_threads(count):
            _train(teams, sources, val, _Deadline(told, interruption))
    return sizes


def _train(teams: list[_Team], sources: Sequence[Source], val: Batches, deadline: _Deadline) -> None:
    for epoch in itertools.count():
        teams[:] = [team for team in (team.without_those_over() for team in teams) if team is not None]
        if not teams:
            return
        began = time.perf_counter()
        for team in teams:
            team.begin()
        _train_epoch(teams, sources, epoch, deadline)
        verdicts = _judged(teams, sources, val)
        share = (time.perf_counter() - began) / sum(not course.over for team in teams for course in team.courses)
        for team, scores in zip(teams, verdicts, strict=True):
            team.take(epoch, scores, share, rows=sources[0].batches.epoch_rows)
        deadline.check(0.0)


class _Team:
    """A stack, and the courses whose heads stand in it: G groups of K, a source a group."""

    def __init__(self, groups: Sequence[Sequence[Course]], stack: HeadStack) -> None:
        self.groups = groups
        self.stack = stack
        self.sources = tuple(group[0].source for group in groups)
        self.courses = [course for group in groups for course in group]
        self._losses = torch.zeros(len(self.courses), device=stack.device)

    def begin(self) -> None:
        """A new epoch."""
        self.stack.set_rates([course.lr for course in self.courses])
        self._losses.zero_()

    def step(self, features: Tensor, labels: Tensor) -> None:
        """One step of all heads."""
        self._losses += self.stack.step(features, labels) * labels.shape[1]

    def take(self, epoch: int, scores: Sequence[Score], seconds: float, *, rows: int) -> None:
        """The end of an epoch: `scores` are those on val, `seconds` a head's share of it."""
        for number, (course, loss, score) in enumerate(zip(self.courses, self._losses.tolist(), scores, strict=True)):
            if not course.over:
                record = EpochRecord(
                    epoch=epoch + 1,
                    max_epochs=course.config.max_epochs,
                    train_loss=loss / rows,
                    val_loss=score.loss,
                    val_score=score.accuracy,
                    seconds=seconds,
                    lr=course.lr,
                )
                course.take(record, partial(self.stack.layers, number))

    def without_those_over(self) -> _Team | None:
        """This team, or a smaller one where the stack can be smaller; None where all are over."""
        numbers = itertools.count()
        groups = [[(next(numbers), course) for course in group] for group in self.groups]
        left = [group for group in groups if not all(course.over for _, course in group)]
        if not left:
            return None
        members = max(sum(not course.over for _, course in group) for group in left)
        if (len(left), members) == (self.stack.groups, self.stack.members):
            return self
        # A group with fewer than the others keeps some that are over: nobody looks at them.
        kept = [sorted(group, key=lambda seat: seat[1].over)[:members] for group in left]
        stack = self.stack.narrowed([[number for number, _ in group] for group in kept])
        return _Team([[course for _, course in group] for group in kept], stack)


# --- one epoch ---------------------------------------------------------------------------------------------


class _Deadline:
    """Asks after every block whether Ctrl-C was pressed, and tells now and then how far it is."""

    def __init__(self, told: Told | None, interruption: Interruption) -> None:
        self._told, self._interruption = told, interruption
        self._next = time.monotonic()

    def check(self, share: float) -> None:
        """`share`: of the epoch. Raises KeyboardInterrupt if that is wished."""
        if self._interruption.requested:
            raise KeyboardInterrupt
        if self._told is not None and time.monotonic() >= self._next:
            self._told(share)
            self._next = time.monotonic() + TOLD_EVERY_S


def _train_epoch(teams: Sequence[_Team], sources: Sequence[Source], epoch: int, deadline: _Deadline) -> None:
    used = sorted({source for team in teams for source in team.sources})
    steps, total = 0, len(sources[0].batches)
    for block in _blocks(used, sources, epoch, alone=len(teams) == 1):
        for team in teams:
            for batches in block:
                team.step(*side_by_side([batches[source] for source in team.sources]))
        steps += len(block)
        deadline.check(steps / total)


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


def _judged(teams: Sequence[_Team], sources: Sequence[Source], val: Batches) -> list[list[Score]]:
    """Accuracy and loss on val of every head of every team."""
    different = {id(source.standard): source for source in sources}
    losses = [torch.zeros(len(team.courses), dtype=torch.float64) for team in teams]
    right = [torch.zeros(len(team.courses), dtype=torch.int64) for team in teams]
    rows = max(1, JUDGED_BYTES // (4 * max(_width(team, val.feature_dim) for team in teams)))
    for features, labels in _pieces(val, rows):
        seen = {key: source.standardised(features) for key, source in different.items()}
        for team, loss, hits in zip(teams, losses, right, strict=True):
            logits = team.stack.logits(_views([seen[id(sources[source].standard)] for source in team.sources]))
            own = labels.expand(len(logits), -1)[:, :, None]
            loss -= F.log_softmax(logits, dim=2).gather(2, own).sum(dim=(1, 2)).cpu().double()
            hits += (logits.argmax(dim=2) == labels).sum(dim=1).cpu()
    return [
        [
            Score(value=hit / len(val.rows), loss=total / len(val.rows))
            for hit, total in zip(hits.tolist(), loss.tolist(), strict=True)
        ]
        for hits, loss in zip(right, losses, strict=True)
    ]


def _pieces(val: Batches, rows: int) -> Iterator[Batch]:
    for features, labels in val.in_order(reuse=True):
        yield from zip(torch.split(features, rows), torch.split(labels, rows), strict=True)


def _views(features: Sequence[Tensor]) -> Tensor:
    # Groups that see the same standardised rows share them.
    same = all(one is features[0] for one in features)
    return features[0][None] if same else torch.stack(list(features))


def _width(team: _Team, feature_dim: int) -> int:
    # float32 values a row of val becomes, at its widest.
    widest = max((*team.stack.shape.hidden, team.stack.classes))
    return max(len(team.courses) * widest, len(team.sources) * feature_dim)
