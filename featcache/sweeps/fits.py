"""Fits the heads of one round: heads trained by steps in batches (stacks, see training/engine.py), the others alone.

Features are read once for all heads of a round that use the same layers. Each head is given out when it is finished,
with a function that builds it; test rows are not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.solved import SolvedHead
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches, StreamedBatches, open_batches
from featcache.rows.devices import free_bytes
from featcache.rows.features import FeatureRows
from featcache.rows.notes import Report, report_notes
from featcache.rows.target import HeadTarget
from featcache.sweeps.keeping import TrialKeeper, TrialKey
from featcache.sweeps.plan import Case, Round
from featcache.sweeps.records import TrialResult
from featcache.training.engine import Engine
from featcache.training.evaluation import evaluate
from featcache.training.finished import final_head, parameter_count
from featcache.training.fit_result import FitResult
from featcache.training.fitting import fit_result_of, scaling_of
from featcache.training.preparation import Prepared, open_prepared, prepare
from featcache.training.solving import fit_solved
from featcache.training.stacking import Setting, initial_module
from featcache.training.texts import text_notes
from featcache.training.trial import Scaling, Source, Trial

# Memory of weights, gradients, optimiser, best epoch and trial, in numbers per weight.
NUMBERS_A_WEIGHT = 7
# The share of the memory free once features are resident that heads in training may use.
STACKS_SHARE = 0.5

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepTrial:
    """One head that a sweep has trained: its result, and how to build it.

    Attributes:
        number: Index of its combination in the plan.
        record: Its result.
        config: Its options, with its own seed.
        prepared: The rows that it was trained on.
        head: Builds the head; None if it could not be trained or can no longer be chosen.
        fitted: Builds the head with its outputs for val; None as for `head`.
        trial: The trial of a head trained by steps; else None.
        scale: For numbers: the standard deviations that the loss is measured in, float64 (C,); else None.
    """

    number: int
    record: TrialResult
    config: HeadConfig
    prepared: Prepared
    head: Callable[[], nn.Module | SolvedHead] | None = None
    fitted: Callable[[], FitResult] | None = None
    trial: Trial | None = None
    scale: NDArray[np.float64] | None = None

    def without_head(self) -> SweepTrial:
        """The trial with its record only, which frees the tensors of the head."""
        if self.trial is not None:
            # Checkpoints keep trials too: without tensors that are no longer needed.
            self.trial.best = {}
        return replace(self, head=None, fitted=None, trial=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepContext:
    """Where and how the heads of a sweep are trained on one of its caches.

    Attributes:
        caches: The cache, and those whose features are joined to its own.
        device: The device.
        interruption: Records Ctrl-C.
        report: Called with a sentence about anything that was left out.
        threads: Torch threads while heads are trained by steps on the CPU; None for the number measured to be fastest.
        resident_bytes: Device memory for features; None for a share of the free memory.
        stack_bytes: Device memory for heads in training; None for a share of the free memory.
        stacks: The sizes of the stacks so far.
        keeper: Keeps trials for checkpoints; None for no checkpoints.
    """

    caches: tuple[FeatureCache, ...]
    device: torch.device
    interruption: Interruption
    report: Report | None = None
    threads: int | None = None
    resident_bytes: int | None = None
    stack_bytes: int | None = None
    stacks: list[int] = field(default_factory=list)
    keeper: TrialKeeper | None = None

    def prepare_case(self, config: HeadConfig, case: Case) -> Prepared:
        """The rows of a case; no features are read yet."""
        return prepare(self.caches[0], config, beside=self.caches[1:], device=self.device, cut=case.cut)

    def stop_if_requested(self) -> None:
        """Raise KeyboardInterrupt after a Ctrl-C."""
        if self.interruption.requested:
            raise KeyboardInterrupt


def fit_round(
    context: SweepContext, configs: Sequence[tuple[int, HeadConfig]], round_: Round, advance: Advance
) -> Iterator[SweepTrial]:
    """Fit every combination in every case of a round, and yield each head when it is finished.

    `configs`: combinations of the same layers, with their indices. `advance` is called with the epochs done since its
    last call; a finished head counts as all its epochs. After a Ctrl-C, yields all heads that are finished or have a
    best epoch, then raises KeyboardInterrupt.
    """
    _report_texts(context, [config for _, config in configs], round_)
    solved = [(number, config) for number, config in configs if config.architecture.solved]
    trained = [(number, config) for number, config in configs if not config.architecture.solved]
    if trained:
        yield from _fit_trained(context, trained, _RoundRows(context, trained[0][1], round_), advance)
    for number, config in solved:
        yield from _fit_solved(context, number, config, round_, advance)


def _report_texts(context: SweepContext, configs: Sequence[HeadConfig], round_: Round) -> None:
    """Report how class names are read, once for each head that is made of them; an error in them stops the sweep."""
    for config in configs if round_.number == 0 else ():
        if config.architecture.templates:
            prepared = context.prepare_case(config, round_.cases[0])
            report_notes(context.report, text_notes(config, prepared.rows["val"], prepared.target))


class _RoundRows:
    """The features of a round, read once: train rows for each cut, val rows and standardisation shared by all."""

    def __init__(self, context: SweepContext, config: HeadConfig, round_: Round) -> None:
        self.cases, self.number = round_.cases, round_.number
        self.prepared: list[Prepared] = []
        self.train: list[Batches] = []
        first = context.prepare_case(config, self.cases[0])
        self.target = first.target
        train, self.val = open_prepared(first, config, report=context.report, resident_bytes=context.resident_bytes)
        # The memory budget is for everything that is open at the same time.
        self._left = context.resident_bytes
        self._spend(train, self.val)
        report_notes(context.report, standardising_notes(len(train.rows), config))
        for case in self.cases:
            if case.cut is self.cases[0].cut:
                self._take(first, train)
            else:
                prepared = context.prepare_case(config, case)
                self._take(prepared, self._open(prepared.rows["train"], config.head_batch_size, config.seed))
        self._scalings: dict[tuple[int, bool], Scaling] = {}
        self._held: dict[int, Batches] = {}

    def _take(self, prepared: Prepared, train: Batches) -> None:
        self.prepared.append(prepared)
        self.train.append(train)

    def _open(self, rows: FeatureRows, batch_size: int, seed: int) -> Batches:
        """Rows as batches: resident if they fit into the rest of the memory budget, else streamed."""
        batches = open_batches(
            rows, batch_size=batch_size, seed=seed, device=self.val.device, resident_bytes=self._left
        )
        self._spend(batches)
        return batches

    def _spend(self, *opened: Batches) -> None:
        if self._left is not None:
            self._left -= sum(batches.resident_bytes for batches in opened)

    def source(self, number: int, config: HeadConfig) -> Source:
        """The train batches of a case, in the order of its seed, with their standardisation."""
        batches = self.train[number].with_order(
            seed=self.cases[number].seed, batch_size=config.head_batch_size, draw=config.draws_views
        )
        return Source(batches=batches, scaling=self._scaling(number, config))

    def fold_rows(self, number: int) -> Batches | None:
        """The rows of the fold that a case holds out; None without folds."""
        chosen = self.cases[number].held
        if chosen is not None and number not in self._held:
            self._held[number] = self._open(self.prepared[number].of(chosen), self.val.batch_size, 0)
        return self._held.get(number)

    def _scaling(self, number: int, config: HeadConfig) -> Scaling:
        train = self.train[number]
        key = (id(train), config.standardize)
        if key not in self._scalings:
            self._scalings[key] = scaling_of(train, config, self.target)
        return self._scalings[key]


# --- heads trained by steps, in batches --------------------------------------------------------------------


def _fit_trained(
    context: SweepContext, configs: Sequence[tuple[int, HeadConfig]], rows: _RoundRows, advance: Advance
) -> Iterator[SweepTrial]:
    alike: dict[tuple[int, bool, bool], list[tuple[int, HeadConfig]]] = {}
    for number, config in configs:
        kind = (config.head_batch_size, config.standardize, config.draws_views)
        alike.setdefault(kind, []).append((number, config))
    for several in alike.values():
        sources = [rows.source(number, several[0][1]) for number in range(len(rows.cases))]
        left: list[tuple[TrialKey, Trial]] = []
        for key, trial in _trials(several, rows):
            if context.keeper is not None and context.keeper.restore_finished(key, trial):
                advance(trial.config.max_epochs)
                yield _restore_trial(key, trial, rows, sources[trial.source], context.keeper)
            else:
                left.append((key, trial))
        started = [] if context.keeper is None else context.keeper.keys_in_training()
        continued = [(key, trial) for key, trial in left if key in started]
        if continued:
            continued.sort(key=lambda one: started.index(one[0]))
            yield from _fit_wave(context, continued, rows, sources, advance, resumed=True)
        for wave in _waves([one for one in left if one[0] not in started], rows, context):
            yield from _fit_wave(context, wave, rows, sources, advance)


def _trials(configs: Sequence[tuple[int, HeadConfig]], rows: _RoundRows) -> Iterator[tuple[TrialKey, Trial]]:
    """A trial for each combination in each case; the cases of one combination follow each other."""
    for number, config in configs:
        for source, case in enumerate(rows.cases):
            key = TrialKey(combination=number, round=rows.number, case=source)
            yield key, Trial(replace(config, seed=case.seed), source=source, metric=rows.target.metric)


def _waves(
    trials: Sequence[tuple[TrialKey, Trial]], rows: _RoundRows, context: SweepContext
) -> Iterator[list[tuple[TrialKey, Trial]]]:
    """Groups of trials that fit into memory together; the cases of a combination stay together if possible."""
    budget = int(free_bytes(context.device) * STACKS_SHARE) if context.stack_bytes is None else context.stack_bytes
    target = rows.target
    wave: list[tuple[TrialKey, Trial]] = []
    taken = 0
    for _, several in itertools.groupby(trials, key=lambda one: one[0].combination):
        cases = list(several)
        config = cases[0][1].config
        size = 4 * NUMBERS_A_WEIGHT * _weights(config, rows.val, target)
        # For several classes per image, the outputs for val are kept.
        size += 4 * len(rows.val.rows) * target.outputs if target.kind == "lists" else 0
        if wave and taken + size * len(cases) > budget:
            yield wave
            wave, taken = [], 0
        for one in cases:
            if wave and taken + size > budget:
                yield wave
                wave, taken = [], 0
            wave.append(one)
            taken += size
    if wave:
        yield wave


def _fit_wave(
    context: SweepContext,
    wave: Sequence[tuple[TrialKey, Trial]],
    rows: _RoundRows,
    sources: Sequence[Source],
    advance: Advance,
    *,
    resumed: bool = False,
) -> Iterator[SweepTrial]:
    keys, trials = [key for key, _ in wave], [trial for _, trial in wave]
    progress = _Progress(trials, advance)

    def checkpoint() -> None:
        if context.keeper is not None:
            context.keeper.epoch_ended(keys, engine)

    engine = Engine(
        trials,
        sources,
        rows.val,
        target=rows.target,
        interruption=context.interruption,
        advance=progress.advance,
        checkpoint=checkpoint,
        setting=Setting(threads=context.threads),
    )
    if resumed and context.keeper is not None:
        context.keeper.restore(engine)
    interrupted = False
    # From here on Ctrl-C takes effect between two steps only.
    context.interruption.has_result = True
    try:
        context.stacks.extend(engine.train())
    except KeyboardInterrupt:
        interrupted = True
    if context.keeper is not None and not interrupted:
        context.keeper.finish(keys, trials)
    for key, trial in wave:
        if trial.over or trial.history:
            finished = _sweep_trial(key.combination, trial, rows, sources[trial.source])
            if context.keeper is not None and trial.over:
                context.keeper.judge(key, finished.record)
            yield finished
    if interrupted:
        raise KeyboardInterrupt
    progress.advance(0.0)


class _Progress:
    """Reports the epochs that trials have done since the last report."""

    def __init__(self, trials: Sequence[Trial], advance: Advance) -> None:
        self._trials, self._advance, self._reported = trials, advance, 0.0

    def advance(self, share: float) -> None:
        """Report that `share` (0 to 1) of the current epoch is done."""
        done = sum(
            trial.config.max_epochs if trial.over else min(len(trial.history) + share, trial.config.max_epochs)
            for trial in self._trials
        )
        # An estimate: stacks on other sources may be one epoch ahead or behind.
        self._advance(max(0.0, done - self._reported))
        self._reported = max(done, self._reported)


def _restore_trial(key: TrialKey, trial: Trial, rows: _RoundRows, source: Source, keeper: TrialKeeper) -> SweepTrial:
    """A trial that was finished before the sweep was resumed; if it could no longer be chosen, only its record."""
    result = keeper.result(key)
    if trial.best or result is None:
        finished = _sweep_trial(key.combination, trial, rows, source)
        # The next checkpoint holds the result of every finished trial, as in an uninterrupted sweep.
        keeper.judge(key, finished.record)
        return finished
    keeper.judge(key, result)
    prepared = rows.prepared[trial.source]
    return SweepTrial(number=key.combination, record=result, config=trial.config, prepared=prepared)


def _sweep_trial(number: int, trial: Trial, rows: _RoundRows, source: Source) -> SweepTrial:
    case, prepared = rows.cases[trial.source], rows.prepared[trial.source]
    there = trial.val is not None
    # Neither function keeps the features that the head was trained on.
    head = partial(_trial_head, trial, prepared, source.scaling) if there else None
    record = TrialResult(
        seed=case.seed,
        val=trial.val,
        last=trial.last if there else None,
        epochs=len(trial.history),
        best_epoch=trial.best_epoch if there else 0,
        seconds=trial.seconds,
        interrupted=trial.interrupted,
        trouble=trial.trouble,
    )
    mine = SweepTrial(
        number=number,
        record=record,
        config=trial.config,
        prepared=prepared,
        head=head,
        trial=trial,
        scale=source.scaling.deviations,
        fitted=None if head is None else partial(_fit_of_trial, trial, prepared, head, source.scaling),
    )
    return _add_case(mine, case, rows.fold_rows(trial.source))


def _trial_head(trial: Trial, prepared: Prepared, scaling: Scaling) -> nn.Module:
    return final_head(trial, scaling, prepared.target, prepared.rows["val"].feature_dim).to(prepared.device)


def _fit_of_trial(trial: Trial, prepared: Prepared, built: Callable[[], nn.Module], scaling: Scaling) -> FitResult:
    val = _stream(prepared.rows["val"], prepared)
    return fit_result_of(trial, built(), val, prepared.target, scaling, seconds=trial.seconds)


def _weights(config: HeadConfig, val: Batches, target: HeadTarget) -> int:
    if config.architecture.own:
        return parameter_count(initial_module(config, val, target))
    sizes = (val.feature_dim, *config.architecture.hidden, target.outputs)
    return sum((deep + 1) * out for deep, out in itertools.pairwise(sizes))


# --- heads that are solved, one at a time ------------------------------------------------------------------


def _fit_solved(
    context: SweepContext, number: int, config: HeadConfig, round_: Round, advance: Advance
) -> Iterator[SweepTrial]:
    cuts: list[object] = []
    for case in round_.cases:
        # A solver uses no random numbers: another seed on the same rows gives the same head.
        if case.cut not in cuts:
            cuts.append(case.cut)
            prepared, mine = context.prepare_case(config, case), replace(config, seed=case.seed)
            fit = partial(fit_solved, prepared, mine, interruption=context.interruption)
            yield _add_case(_fit_alone(number, mine, prepared, fit), case, _stream_fold(prepared, case))
            context.stop_if_requested()
        advance(config.max_epochs)


def _fit_alone(number: int, config: HeadConfig, prepared: Prepared, fit: Callable[[], FitResult]) -> SweepTrial:
    """Fit one head alone. An error is recorded as this head's trouble and does not stop the others."""
    try:
        fitted = fit()
    except HeadError as error:
        record = TrialResult(seed=config.seed, trouble=error.message)
        return SweepTrial(number=number, record=record, config=config, prepared=prepared)
    record = TrialResult(
        seed=config.seed,
        val=fitted.val.score(),
        last=fitted.last,
        epochs=len(fitted.history),
        best_epoch=fitted.best_epoch,
        seconds=fitted.seconds,
        candidate=fitted.history[fitted.best_epoch - 1].candidate,
        interrupted=fitted.interrupted,
    )
    return SweepTrial(
        number=number,
        record=record,
        config=config,
        prepared=prepared,
        head=lambda: fitted.head,
        fitted=lambda: fitted,
        scale=fitted.val.scale,
    )


def _stream_fold(prepared: Prepared, case: Case) -> Batches | None:
    return None if case.held is None else _stream(prepared.of(case.held), prepared)


def _stream(rows: FeatureRows, prepared: Prepared) -> Batches:
    return StreamedBatches(rows, batch_size=1, seed=0, device=prepared.device)


def _add_case(one: SweepTrial, case: Case, held: Batches | None) -> SweepTrial:
    """The trial with its case's fold and draw. With folds, scores the held-out images and drops the head.

    A head of a fold is never chosen, so it need not be kept.
    """
    record = replace(one.record, fold=case.fold, draw=case.draw)
    if held is None or one.head is None:
        return replace(one, record=record)
    score = evaluate(one.head(), held, one.prepared.target, scale=one.scale, loss=one.config.loss).score()
    return replace(one.without_head(), record=replace(record, held=score, held_images=len(held.rows)))
