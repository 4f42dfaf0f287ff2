"""Fitting the heads of one round: those that can be stacked train together, the others one after another.

Features are read once for all heads of a round that want the same layers. Heads come out as they are finished, with
a way to build them; their test rows are not touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import nn

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import evaluate
from featcache.heads.standardisation import Standardisation, standardising_notes
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches, FeatureRows, StreamedBatches, open_batches
from featcache.rows.devices import free_bytes
from featcache.rows.notes import Report, tell
from featcache.sweep.plan import Case, Round
from featcache.sweep.records import SweptHead
from featcache.training.course import Course, Source
from featcache.training.fitted import Fitted
from featcache.training.fitting import fit_batches, fit_solved, head_shape, standardisation
from featcache.training.preparation import Prepared, open_prepared, prepare
from featcache.training.together import train_together

# What a stack knows how to do for each head; one with any other option set trains alone.
STACKED_OPTIONS = frozenset(
    (
        *("head", "layers", "activation", "dropout", "lr", "weight_decay", "l1", "optimizer", "momentum", "schedule"),
        *("label_smoothing", "class_weights", "standardize", "train_views", "head_batch_size"),
        *("max_epochs", "patience", "min_delta", "val_fraction", "val_seed", "seed"),
    )
)
STACKED_SCHEDULES = ("constant", "cosine", "plateau")
# What weights, gradients, optimiser, best epoch and a trial take, in numbers a weight.
NUMBERS_A_WEIGHT = 7
# What heads in training may take of the memory that is free once features are resident.
STACKS_SHARE = 0.5
_DEFAULTS = {option.name: option.default for option in fields(HeadConfig)}

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept:
    """One finished head: of which combination, what is known of it, and how to have it.

    `head` builds it, `fitted` also asks what it says of val; None where there is none, or nobody will ask for it.
    """

    number: int
    record: SweptHead
    config: HeadConfig
    prepared: Prepared
    head: Callable[[], nn.Module] | None = None
    fitted: Callable[[], Fitted] | None = None

    def forgotten(self) -> Swept:
        """The record alone."""
        return replace(self, head=None, fitted=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Where a sweep's heads are fitted.

    `interruption`: how Ctrl-C arrives. `threads`: torch's while heads are trained by steps on the CPU; None for what is
    measured to be fastest. `resident_bytes`: the most that features may take on the device, `stack_bytes`: that heads
    in training may; None for shares of what is free. `stacks`: their sizes so far.
    """

    caches: tuple[FeatureCache, ...]
    place: torch.device
    interruption: Interruption
    report: Report | None = None
    threads: int | None = None
    resident_bytes: int | None = None
    stack_bytes: int | None = None
    stacks: list[int] = field(default_factory=list)

    def prepared(self, config: HeadConfig, case: Case) -> Prepared:
        """The rows of a case, none of them read."""
        return prepare(self.caches[0], config, beside=self.caches[1:], place=self.place, cut=case.cut)

    def stop_if_asked(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C."""
        if self.interruption.requested:
            raise KeyboardInterrupt


def is_stackable(config: HeadConfig) -> bool:
    """Whether a stack can do all that is asked of this head."""
    plain = all(getattr(config, name) == default for name, default in _DEFAULTS.items() if name not in STACKED_OPTIONS)
    return plain and not config.architecture.solved and config.schedule in STACKED_SCHEDULES


def fit_round(
    ground: Ground, configs: Sequence[tuple[int, HeadConfig]], round_: Round, advance: Advance
) -> Iterator[Swept]:
    """Every combination, given with its number and of the same layers, in every case of a round.

    `advance` is told what has been done since it was told last, in epochs; a head that is over has done all it
    might. Raises KeyboardInterrupt after a Ctrl-C, when what was finished or has a best epoch has come out.
    """
    solved = [(number, config) for number, config in configs if config.architecture.solved]
    trained = [(number, config) for number, config in configs if not config.architecture.solved]
    if trained:
        rows = _RoundRows(ground, trained[0][1], round_)
        stackable = [(number, config) for number, config in trained if is_stackable(config)]
        yield from _fit_stackable(ground, stackable, rows, advance)
        for number, config in trained:
            if not is_stackable(config):
                yield from _fit_each(ground, number, config, rows, advance)
    for number, config in solved:
        yield from _fit_solved(ground, number, config, round_, advance)


class _RoundRows:
    """The features of a round, read once: train rows a cut, val rows and standardisation for all who share them."""

    def __init__(self, ground: Ground, config: HeadConfig, round_: Round) -> None:
        self.cases = round_.cases
        self.prepared: list[Prepared] = []
        self.train: list[Batches] = []
        first = ground.prepared(config, self.cases[0])
        train, self.val = open_prepared(first, config, report=ground.report, resident_bytes=ground.resident_bytes)
        tell(ground.report, standardising_notes(len(train.rows), config))
        for case in self.cases:
            if case.cut is self.cases[0].cut:
                self._take(first, train)
            else:
                prepared = ground.prepared(config, case)
                self._take(
                    prepared,
                    open_batches(
                        prepared.rows["train"],
                        batch_size=config.head_batch_size,
                        seed=config.seed,
                        device=ground.place,
                        resident_bytes=ground.resident_bytes,
                    ),
                )
        self._standards: dict[int, Standardisation] = {}
        self._held: dict[int, Batches] = {}

    def _take(self, prepared: Prepared, train: Batches) -> None:
        self.prepared.append(prepared)
        self.train.append(train)

    def source(self, number: int, config: HeadConfig) -> Source:
        """What heads of a case learn from, in the order of its seed."""
        batches = self.train[number].reordered(
            seed=self.cases[number].seed, batch_size=config.head_batch_size, draw=config.draws_views
        )
        return Source(batches=batches, standard=self._standard(number) if config.standardize else None)

    def held(self, number: int) -> Batches | None:
        """The rows of the fold that a case leaves out; None where there are no folds."""
        chosen = self.cases[number].held
        if chosen is not None and number not in self._held:
            rows, device = self.prepared[number].of(chosen), self.val.device
            self._held[number] = open_batches(rows, batch_size=self.val.batch_size, seed=0, device=device)
        return self._held.get(number)

    def _standard(self, number: int) -> Standardisation:
        train = self.train[number]
        if id(train) not in self._standards:
            self._standards[id(train)] = standardisation(train)
        return self._standards[id(train)]


# --- heads that train together -----------------------------------------------------------------------------


def _fit_stackable(
    ground: Ground, configs: Sequence[tuple[int, HeadConfig]], rows: _RoundRows, advance: Advance
) -> Iterator[Swept]:
    alike: dict[tuple[int, bool, bool], list[tuple[int, HeadConfig]]] = {}
    for number, config in configs:
        kind = (config.head_batch_size, config.standardize, config.draws_views)
        alike.setdefault(kind, []).append((number, config))
    for several in alike.values():
        sources = [rows.source(number, several[0][1]) for number in range(len(rows.cases))]
        for wave in _waves(several, rows, ground):
            yield from _fit_wave(ground, wave, rows, sources, advance)


def _waves(
    configs: Sequence[tuple[int, HeadConfig]], rows: _RoundRows, ground: Ground
) -> Iterator[list[tuple[int, Course]]]:
    """Heads that fit in memory at once, all cases of a combination together where that is possible."""
    budget = int(free_bytes(ground.place) * STACKS_SHARE) if ground.stack_bytes is None else ground.stack_bytes
    classes = rows.prepared[0].classes
    wave: list[tuple[int, Course]] = []
    taken = 0
    for number, config in configs:
        size = 4 * NUMBERS_A_WEIGHT * _weights(config, rows.val.feature_dim, classes)
        if wave and taken + size * len(rows.cases) > budget:
            yield wave
            wave, taken = [], 0
        for source, case in enumerate(rows.cases):
            if wave and taken + size > budget:
                yield wave
                wave, taken = [], 0
            wave.append((number, Course(replace(config, seed=case.seed), source=source)))
            taken += size
    if wave:
        yield wave


def _fit_wave(
    ground: Ground, wave: Sequence[tuple[int, Course]], rows: _RoundRows, sources: Sequence[Source], advance: Advance
) -> Iterator[Swept]:
    courses = [course for _, course in wave]
    progress = _Progress(courses, advance)
    interrupted = False
    try:
        ground.stacks.extend(
            train_together(
                courses,
                sources,
                rows.val,
                classes=rows.prepared[0].classes,
                interruption=ground.interruption,
                told=progress.tell,
                threads=ground.threads,
            )
        )
    except KeyboardInterrupt:
        interrupted = True
    for number, course in wave:
        if course.over or course.history:
            yield _swept_course(number, course, rows, sources[course.source])
    if interrupted:
        raise KeyboardInterrupt
    progress.tell(0.0)


class _Progress:
    """What courses have done, told as what came since the last time."""

    def __init__(self, courses: Sequence[Course], advance: Advance) -> None:
        self._courses, self._advance, self._told = courses, advance, 0.0

    def tell(self, share: float) -> None:
        """`share` of the present epoch is done."""
        done = sum(
            course.config.max_epochs if course.over else min(len(course.history) + share, course.config.max_epochs)
            for course in self._courses
        )
        # Stacks on other sources may be an epoch apart from what was guessed.
        self._advance(max(0.0, done - self._told))
        self._told = max(done, self._told)


def _swept_course(number: int, course: Course, rows: _RoundRows, source: Source) -> Swept:
    case, prepared = rows.cases[course.source], rows.prepared[course.source]
    there = course.val is not None
    # Neither holds the features that it was trained on.
    head = partial(_course_head, course, prepared, source.standard) if there else None
    record = SweptHead(
        seed=case.seed,
        val=course.val,
        epochs=len(course.history),
        best_epoch=course.best_epoch if there else 0,
        seconds=sum(record.seconds for record in course.history),
        interrupted=course.interrupted,
        trouble=course.trouble,
    )
    mine = Swept(
        number=number,
        record=record,
        config=course.config,
        prepared=prepared,
        head=head,
        fitted=None if head is None else partial(_fitted_course, course, prepared, head),
    )
    return _judged(mine, case, rows.held(course.source))


def _course_head(course: Course, prepared: Prepared, standard: Standardisation | None) -> nn.Module:
    shape = head_shape(course.config, prepared.rows["val"].feature_dim, prepared.classes)
    return course.head(shape, standard).to(prepared.place)


def _fitted_course(course: Course, prepared: Prepared, built: Callable[[], nn.Module]) -> Fitted:
    head = built()
    return Fitted(
        head=head,
        val=evaluate(head, _streamed(prepared.rows["val"], prepared)),
        last=course.last,
        history=tuple(course.history),
        best_epoch=course.best_epoch,
        interrupted=course.interrupted,
        seconds=sum(record.seconds for record in course.history),
        threads=course.threads,
    )


def _weights(config: HeadConfig, wide: int, classes: int) -> int:
    sizes = (wide, *config.architecture.hidden, classes)
    return sum((deep + 1) * out for deep, out in itertools.pairwise(sizes))


# --- heads that are fitted alone ---------------------------------------------------------------------------


def _fit_each(ground: Ground, number: int, config: HeadConfig, rows: _RoundRows, advance: Advance) -> Iterator[Swept]:
    for place, (case, prepared) in enumerate(zip(rows.cases, rows.prepared, strict=True)):
        mine = replace(config, seed=case.seed)
        batches = rows.source(place, replace(mine, standardize=False)).batches
        fit = partial(
            fit_batches,
            batches,
            rows.val,
            prepared.classes,
            mine,
            progress=lambda record: advance(1.0),
            interruption=ground.interruption,
            threads=ground.threads,
        )
        one = _fitted_alone(number, mine, prepared, fit)
        yield _judged(one, case, rows.held(place))
        ground.stop_if_asked()
        advance(mine.max_epochs - one.record.epochs)


def _fit_solved(ground: Ground, number: int, config: HeadConfig, round_: Round, advance: Advance) -> Iterator[Swept]:
    cuts: list[object] = []
    for case in round_.cases:
        # It draws nothing: another seed on the same rows would be the same head.
        if case.cut not in cuts:
            cuts.append(case.cut)
            prepared, mine = ground.prepared(config, case), replace(config, seed=case.seed)
            fit = partial(fit_solved, prepared, mine, interruption=ground.interruption)
            yield _judged(_fitted_alone(number, mine, prepared, fit), case, _streamed_fold(prepared, case))
            ground.stop_if_asked()
        advance(config.max_epochs)


def _fitted_alone(number: int, config: HeadConfig, prepared: Prepared, fit: Callable[[], Fitted]) -> Swept:
    """A head by itself. What makes it impossible is its own trouble, and no other head's."""
    try:
        fitted = fit()
    except HeadError as error:
        record = SweptHead(seed=config.seed, trouble=error.message)
        return Swept(number=number, record=record, config=config, prepared=prepared)
    record = SweptHead(
        seed=config.seed,
        val=fitted.val.score(),
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        seconds=fitted.seconds,
        candidate=fitted.history[fitted.best_epoch - 1].candidate,
        interrupted=fitted.interrupted,
    )
    return Swept(
        number=number,
        record=record,
        config=config,
        prepared=prepared,
        head=lambda: fitted.head,
        fitted=lambda: fitted,
    )


def _streamed_fold(prepared: Prepared, case: Case) -> Batches | None:
    return None if case.held is None else _streamed(prepared.of(case.held), prepared)


def _streamed(rows: FeatureRows, prepared: Prepared) -> Batches:
    return StreamedBatches(rows, batch_size=1, seed=0, device=prepared.place)


def _judged(one: Swept, case: Case, held: Batches | None) -> Swept:
    """With what the case adds. A head of a fold is judged on its images now, and not kept: no fold's head is chosen."""
    record = replace(one.record, fold=case.fold, draw=case.draw)
    if held is None or one.head is None:
        return replace(one, record=record)
    score = evaluate(one.head(), held).score()
    return replace(one.forgotten(), record=replace(record, held=score, held_images=len(held.rows)))
