"""Many heads trained over the same batches: each batch is read, converted and standardised once for all of them.

    courses = [Course(config, source=0) for config in configs]
    train_together(courses, [Source(batches=..., ...)], val, classes=10, interruption=interruption)
    courses[3].val, courses[3].head(...)

Every head has early stopping and a best epoch of its own: one that is over leaves the stack and changes no more. How
many heads are stacked is measured on real batches before the first epoch: small heads are fastest all together, wide
ones in stacks that stay in the processor's cache. Stacks take turns on blocks of batches, so that they find their
weights still there.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.batches import Batch, Batches
from featcache.heads.config import HeadConfig
from featcache.heads.lightning import balanced_weights, epoch_lr
from featcache.heads.placement import seeded
from featcache.heads.records import EpochRecord, Score
from featcache.heads.stacked import HeadStack, Layer, StackedHead, StackShape
from featcache.heads.standardisation import Standardisation, StandardisedHead
from featcache.heads.stopping import Interruption, Patience

STACK_SIZES = (1, 4, 16, 64, 256)
# Without a trial, where all steps together take less time than one.
UNTRIED_SIZE = 64
FEWEST_STEPS_TO_TRY = 100
TRIAL_SECONDS = 0.2
# What batches that stacks take turns on may take as float32, and what a block of val may while it is judged.
BLOCK_BYTES = 16 << 20
JUDGED_BYTES = 64 << 20

Told = Callable[[float], None]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An order of rows that heads learn from. `standard`: what their features are standardised by; None for nothing.

    Sources of one training have batches of the same sizes; those that show the same rows share one `standard`.
    """

    batches: Batches
    standard: Standardisation | None = None


class Course:
    """One head on its way: its options, where its batches come from, and what is known after each epoch.

    `history`: finished epochs. `trouble`: why it ended early, in a sentence; None for one that did not.
    """

    def __init__(self, config: HeadConfig, *, source: int = 0) -> None:
        self.config = config
        self.source = source
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.trouble: str | None = None
        self.over = False
        self._best: tuple[Layer, ...] = ()
        self._patience = Patience(patience=config.patience, min_delta=config.min_delta)

    @property
    def interrupted(self) -> bool:
        """Whether it was ended by Ctrl-C: neither by patience, nor by its last epoch, nor by its numbers."""
        return not self.over

    @property
    def val(self) -> Score | None:
        """That of the best epoch; None before the first epoch and for a head that diverged."""
        if self.trouble is not None or not self.history:
            return None
        return _score(self.history[self.best_epoch - 1])

    @property
    def last(self) -> Score:
        """That of the last epoch."""
        return _score(self.history[-1])

    def take(self, record: EpochRecord, layers: Callable[[], tuple[Layer, ...]]) -> None:
        """One more epoch; `layers` gives the weights at its end, and is asked for if they are the best so far."""
        for name, loss in (("train loss", record.train_loss), ("val loss", record.val_loss)):
            if not math.isfinite(loss):
                self.trouble = f"diverged: {name} is {loss} in epoch {record.epoch} with lr {self.config.lr:g}"
                self.over = True
                return
        if not self.history or record.val_loss < self.history[self.best_epoch - 1].val_loss:
            self._best, self.best_epoch = layers(), record.epoch
        self.history.append(record)
        self.over = self._patience.is_over(record.val_loss) or record.epoch == self.config.max_epochs

    def forget(self) -> None:
        """Give the memory of the weights back."""
        self._best = ()

    def head(self, shape: HeadShape, standard: Standardisation | None) -> nn.Module:
        """The head of the best epoch, on features as they are."""
        with torch.device("meta"):
            head = build_head(self.config.architecture, shape)
        tensors = [tensor for layer in self._best for tensor in layer]
        head.load_state_dict(
            {name: tensor.clone() for name, tensor in zip(head.state_dict(), tensors, strict=True)}, assign=True
        )
        return head if standard is None else StandardisedHead(head, standard).folded()


def train_together(
    courses: Sequence[Course],
    sources: Sequence[Source],
    val: Batches,
    *,
    classes: int,
    interruption: Interruption,
    told: Told | None = None,
    size: int | None = None,
) -> tuple[int, ...]:
    """Train every course to its end; all of them have the same batch size and width of features.

    `told` is called now and then with the share of the present epoch that is done, `size` is how many heads are
    stacked (None: measured). Returns the sizes of the stacks. Raises KeyboardInterrupt after a Ctrl-C: finished
    epochs stand in the courses.
    """
    teams = list(_teams(courses, sources, classes, size))
    sizes = tuple(len(team.courses) for team in teams)
    deadline = _Deadline(told, interruption)
    for epoch in itertools.count():
        teams = [team for team in (team.without_those_over() for team in teams) if team is not None]
        if not teams:
            return sizes
        began = time.perf_counter()
        for team in teams:
            team.begin(epoch)
        _train_epoch(teams, sources, epoch, deadline)
        verdicts = _judged(teams, sources, val)
        share = (time.perf_counter() - began) / sum(not course.over for team in teams for course in team.courses)
        for team, scores in zip(teams, verdicts, strict=True):
            team.take(epoch, scores, share, rows=len(sources[0].batches.rows))
        deadline.check(0.0)
    raise AssertionError("there is always a last epoch")


class _Team:
    """A stack, and the courses whose heads stand in it: G groups of K, a source a group."""

    def __init__(self, groups: Sequence[Sequence[Course]], stack: HeadStack) -> None:
        self.groups = groups
        self.stack = stack
        self.sources = tuple(group[0].source for group in groups)
        self.courses = [course for group in groups for course in group]
        self._losses = torch.zeros(len(self.courses), device=stack.device)

    def begin(self, epoch: int) -> None:
        """A new epoch, counted from 0."""
        self.stack.set_rates([epoch_lr(course.config, epoch) for course in self.courses])
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
                    val_accuracy=score.accuracy,
                    seconds=seconds,
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
    """Asks after every block whether Ctrl-C was pressed, and tells how far it is twice a second."""

    def __init__(self, told: Told | None, interruption: Interruption) -> None:
        self._told, self._interruption = told, interruption
        self._next = time.monotonic()

    def check(self, share: float) -> None:
        """`share`: of the epoch. Raises KeyboardInterrupt if that is wished."""
        if self._interruption.requested:
            raise KeyboardInterrupt
        if self._told is not None and time.monotonic() >= self._next:
            self._told(share)
            self._next = time.monotonic() + 0.5


def _train_epoch(teams: Sequence[_Team], sources: Sequence[Source], epoch: int, deadline: _Deadline) -> None:
    used = sorted({source for team in teams for source in team.sources})
    steps, total = 0, len(sources[0].batches)
    for block in _blocks(used, sources, epoch, alone=len(teams) == 1):
        for team in teams:
            for batches in block:
                team.step(*_side_by_side([batches[source] for source in team.sources]))
        steps += len(block)
        deadline.check(steps / total)


def _blocks(
    used: Sequence[int], sources: Sequence[Source], epoch: int, *, alone: bool
) -> Iterator[list[dict[int, Batch]]]:
    """Batches by source, standardised, as many at a time as stay near the processor."""
    first = sources[0].batches
    batch_bytes = 4 * first.feature_dim * first.batch_size * len(used)
    several = 1 if alone else max(1, BLOCK_BYTES // batch_bytes)
    coming = zip(*(_standardised(sources[source], epoch) for source in used), strict=True)
    while block := [dict(zip(used, batches, strict=True)) for batches in itertools.islice(coming, several)]:
        yield block


def _standardised(source: Source, epoch: int) -> Iterator[Batch]:
    apply = _Standardiser(source.standard, source.batches.device)
    for features, labels in source.batches.epoch(epoch):
        yield apply(features), labels


class _Standardiser:
    """What StandardisedHead does to features, in the same arithmetic."""

    def __init__(self, standard: Standardisation | None, device: torch.device) -> None:
        self._mean = None if standard is None else standard.mean.float().to(device)
        self._scale = None if standard is None else (1 / standard.deviation).float().to(device)

    def __call__(self, features: Tensor) -> Tensor:
        if self._mean is None or self._scale is None:
            return features
        return (features - self._mean).mul_(self._scale)


def _side_by_side(batches: Sequence[Batch]) -> Batch:
    # One source needs no copy.
    if len(batches) == 1:
        return batches[0][0][None], batches[0][1][None]
    return torch.stack([features for features, _ in batches]), torch.stack([labels for _, labels in batches])


def _judged(teams: Sequence[_Team], sources: Sequence[Source], val: Batches) -> list[list[Score]]:
    """Accuracy and loss on val of every head of every team."""
    standardisers = {id(source.standard): _Standardiser(source.standard, val.device) for source in sources}
    losses = [torch.zeros(len(team.courses), dtype=torch.float64) for team in teams]
    right = [torch.zeros(len(team.courses), dtype=torch.int64) for team in teams]
    rows = max(1, JUDGED_BYTES // (4 * max(_width(team, val.feature_dim) for team in teams)))
    for features, labels in _pieces(val, rows):
        seen = {key: apply(features) for key, apply in standardisers.items()}
        for team, loss, hits in zip(teams, losses, right, strict=True):
            logits = team.stack.logits(_views([seen[id(sources[source].standard)] for source in team.sources]))
            own = labels.expand(len(logits), -1)[:, :, None]
            loss -= F.log_softmax(logits, dim=2).gather(2, own).sum(dim=(1, 2)).cpu().double()
            hits += (logits.argmax(dim=2) == labels).sum(dim=1).cpu()
    return [
        [
            Score(accuracy=hit / len(val.rows), loss=total / len(val.rows))
            for hit, total in zip(hits.tolist(), loss.tolist(), strict=True)
        ]
        for hits, loss in zip(right, losses, strict=True)
    ]


def _pieces(val: Batches, rows: int) -> Iterator[Batch]:
    for features, labels in val.in_order():
        yield from zip(torch.split(features, rows), torch.split(labels, rows), strict=True)


def _views(features: Sequence[Tensor]) -> Tensor:
    # Groups that see the same standardised rows share them.
    same = all(one is features[0] for one in features)
    return features[0][None] if same else torch.stack(list(features))


def _width(team: _Team, feature_dim: int) -> int:
    # float32 values a row of val becomes, at its widest.
    widest = max((*team.stack.shape.hidden, team.stack.classes))
    return max(len(team.courses) * widest, len(team.sources) * feature_dim)


# --- which heads stand together ----------------------------------------------------------------------------


def _teams(courses: Sequence[Course], sources: Sequence[Source], classes: int, size: int | None) -> Iterator[_Team]:
    shapes: dict[StackShape, list[Course]] = {}
    for course in courses:
        shapes.setdefault(StackShape.of(course.config), []).append(course)
    for alike in shapes.values():
        starts = _starts(alike, sources, classes)
        wanted = size or _fastest_size(alike, sources, starts)
        for groups in _rectangles(alike, wanted):
            yield _Team(groups, HeadStack([[starts[course] for course in group] for group in groups]))


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
    first = {source: next(_standardised(sources[source], 0)) for source in {course.source for course in courses}}
    taken: dict[int, float] = {}
    for size in (*(size for size in STACK_SIZES if size < len(courses)), len(courses)):
        groups = next(_rectangles(courses, size))
        heads = [[starts[course] for course in group] for group in groups]
        batch = _side_by_side([first[group[0].source] for group in groups])
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


def _score(record: EpochRecord) -> Score:
    return Score(accuracy=record.val_accuracy, loss=record.val_loss)
