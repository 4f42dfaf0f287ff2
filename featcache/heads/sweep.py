"""Many heads over one cache: which options are best, how much seeds scatter, what few images or other folds would give.

    found = sweep(cache, "mlp:128,64", grid={"lr": [1e-3, 1e-2], "weight_decay": [0, 1e-4]}, seeds=3)
    found.best.said, found.run, found.test

Val ranks (with folds, the images that were held out); test is looked at for the chosen head alone, after everything
has been decided. The chosen head becomes an ordinary run, the sweep a record beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.batches import StreamedBatches
from featcache.heads.conclusion import Fitted, conclude
from featcache.heads.cuts import cut_cache
from featcache.heads.fitting import fit_prepared
from featcache.heads.grid import Grid
from featcache.heads.metrics import accuracy_interval, evaluate
from featcache.heads.placement import choose_device
from featcache.heads.preparation import Prepared, prepare
from featcache.heads.records import Report, Score, tell
from featcache.heads.resampling import mean_interval
from featcache.heads.runs import Run, folder_name, prepare_runs_dir
from featcache.heads.stopping import Interruption
from featcache.heads.sweep_fits import Ground, Swept, fit_round
from featcache.heads.sweep_plan import Round, SweepPlan, rounds_of
from featcache.heads.sweep_records import Estimate, Sweep, SweepRow, SweptHead, ranked
from featcache.heads.sweep_tables import write_sweep

SweepProgress = Callable[[int, int], None]


def sweep(
    cache: FeatureCache | str | Path,
    head: str = "mlp:128,64",
    *,
    grid: Grid | None = None,
    seeds: int = 1,
    folds: int | None = None,
    shots: Sequence[int] = (),
    draws: int | None = None,
    beside: Sequence[FeatureCache | str | Path] = (),
    layer: str | Sequence[str] | None = None,
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    progress: SweepProgress | None = None,
    report: Report | None = None,
    **options: Any,
) -> Sweep:
    """Train a head for every combination of `grid`, rank them, and write the best one as a run.

    `grid`: lists of values by the name of an option of `train_head`, and `hidden` for the sizes of hidden layers
    (`[64, (128, 64)]`); all other options are those of `train_head`, in `options`. `seeds`: train every combination
    so many times, and rank by the mean. `folds`: hold out each of so many parts of train once, and rank by the
    accuracy there. `shots`: train on so many images a class, in `draws` (5) random draws, for each number given.
    `progress` is called with (epochs done, epochs in all); a head that stops early has done all of its own.

    Heads of one shape train as one, as far as that is measured to be faster; each is, within rounding, the head that
    `train_head` gives, but for dropout, whose random numbers differ. A head that diverges is marked, and ranks last.

    Ctrl-C ends it: what was finished is ranked, the best so far written, and the record marked as interrupted. Before
    any head has finished an epoch it is a KeyboardInterrupt, and nothing is written.

    Raises InvalidOption and UnknownName for options, HeadError where no head can be trained (too few images for
    the folds or shots, no labels, every head diverged), CacheError for a cache that cannot be used.
    """
    layers = None if layer is None else (layer,) if isinstance(layer, str) else tuple(layer)
    plan = SweepPlan.of(
        {"head": head, "layers": layers, **options}, grid or {}, seeds=seeds, folds=folds, shots=shots, draws=draws
    )
    with ExitStack() as opened:
        caches = [
            one if isinstance(one, FeatureCache) else opened.enter_context(FeatureCache.open(Path(one)))
            for one in (cache, *beside)
        ]
        return sweep_heads(caches, plan, runs_dir=runs_dir, device=device, progress=progress, report=report)


def sweep_heads(
    caches: Sequence[FeatureCache],
    plan: SweepPlan,
    *,
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    progress: SweepProgress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    stack_bytes: int | None = None,
    created: datetime | None = None,
) -> Sweep:
    """`sweep` for what is a plan already.

    `resident_bytes`: the most that features may take on the device, `stack_bytes`: that heads in training may; None
    for shares of what is free. `created`: the time in UTC that names the folders; None for now.
    """
    runs_dir, began = Path(runs_dir), time.perf_counter()
    prepare_runs_dir(runs_dir)
    whole = cut_cache(caches[0], val_fraction=plan.first.val_fraction, val_seed=plan.first.val_seed)
    tell(report, whole.notes)
    rounds = rounds_of(caches[0], plan)
    created = created or datetime.now(UTC)
    folder = runs_dir / folder_name(created, [cache.spec.backbone for cache in caches], "sweep")
    with Interruption() as interruption:
        ground = Ground(
            caches=tuple(caches),
            place=choose_device(device),
            interruption=interruption,
            report=report,
            resident_bytes=resident_bytes,
            stack_bytes=stack_bytes,
        )
        results = _Results(plan, rounds)
        results.collect(_fitted_rounds(ground, plan, rounds, _Counter(plan, rounds, progress)), interruption)
        rows, choice = _chosen(results, plan, ground)
        heads = sum(len(row.heads) for row in rows)
        run = None if choice is None else choice.written(ground, runs_dir, created, f"{folder.name} of {heads} heads")
        found = Sweep(
            folder=folder,
            created=created.isoformat(timespec="seconds"),
            caches=tuple(str(cache.path) for cache in caches),
            grid=plan.grid,
            seeds=plan.seeds,
            folds=plan.folds,
            shots=plan.shots,
            draws=plan.draws,
            images=whole.images(),
            rows=rows,
            run=None if run is None else run.folder,
            chosen=_chosen_case(choice),
            test=None if run is None else run.training.test,
            seconds=time.perf_counter() - began,
            interrupted=results.interrupted or interruption.requested,
            stacks=tuple(sorted(ground.stacks, reverse=True)),
            notes=whole.notes,
        )
        write_sweep(found)
    return found


# --- fitting -----------------------------------------------------------------------------------------------


def _fitted_rounds(
    ground: Ground, plan: SweepPlan, rounds: Sequence[Round], counter: _Counter
) -> Iterable[tuple[Round, Swept]]:
    by_layers: dict[tuple[str, ...] | None, list[int]] = {}
    for number, one in enumerate(plan.combinations):
        by_layers.setdefault(one.config.layers, []).append(number)
    for numbers in by_layers.values():
        # A layer that is not there shows now, not after those before it have been trained on.
        ground.prepared(plan.combinations[numbers[0]].config, rounds[0].cases[0])
    for numbers in by_layers.values():
        configs = [(number, plan.combinations[number].config) for number in numbers]
        for round_ in rounds:
            for swept in fit_round(ground, configs, round_, counter.advance):
                yield round_, swept


class _Counter:
    """Epochs of all heads, as if none stopped early."""

    def __init__(self, plan: SweepPlan, rounds: Sequence[Round], progress: SweepProgress | None) -> None:
        cases = sum(len(round_.cases) for round_ in rounds)
        self._total = cases * sum(one.config.max_epochs for one in plan.combinations)
        self._done = 0.0
        self._progress = progress

    def advance(self, epochs: float) -> None:
        """So many more are done."""
        self._done += epochs
        if self._progress is not None:
            self._progress(min(round(self._done), self._total), self._total)


@dataclass(frozen=True, kw_only=True)
class _Key:
    """A row of the table: a combination's number, and shots."""

    number: int
    shots: int | None


class _Results:
    """What has been swept so far, row by row. Only heads that may yet be chosen are kept to be built."""

    def __init__(self, plan: SweepPlan, rounds: Sequence[Round]) -> None:
        self._plan = plan
        self._wanted = {
            _Key(number=number, shots=shots): _heads_wanted(plan, number, shots, rounds)
            for shots in dict.fromkeys(round_.shots for round_ in rounds)
            for number in range(len(plan.combinations))
        }
        self._found: dict[_Key, list[Swept]] = {}
        self.interrupted = False

    def collect(self, coming: Iterable[tuple[Round, Swept]], interruption: Interruption) -> None:
        """Take all that comes until Ctrl-C ends it. Raises KeyboardInterrupt if it came before any head was judged."""
        try:
            for round_, swept in coming:
                key = _Key(number=swept.number, shots=round_.shots)
                self._found.setdefault(key, []).append(swept)
                self._drop_beaten(key)
                interruption.keeping = True
        except KeyboardInterrupt:
            judged = any(swept.record.judged is not None for several in self._found.values() for swept in several)
            if interruption.insisted or not judged:
                raise
            self.interrupted = True

    def rows(self) -> dict[_Key, SweepRow]:
        """All rows that have a head."""
        return {key: self._row(key) for key in self._found}

    def heads(self, key: _Key) -> list[Swept]:
        """The heads of a row that can be built."""
        return [swept for swept in self._found[key] if swept.fitted is not None]

    def _row(self, key: _Key) -> SweepRow:
        one = self._plan.combinations[key.number]
        heads = tuple(swept.record for swept in self._found[key])
        return SweepRow(
            said=one.said,
            config=one.config,
            heads=heads,
            wanted=self._wanted[key],
            shots=key.shots,
            estimate=estimated(heads, seed=self._plan.seeds[0]),
        )

    def _drop_beaten(self, key: _Key) -> None:
        # A complete row that is not the best of its kind will never be chosen.
        if len(self._found[key]) < self._wanted[key]:
            return
        rivals = [other for other in self._found if other.shots == key.shots and self.heads(other)]
        complete = [other for other in rivals if len(self._found[other]) == self._wanted[other]]
        best = max(complete, key=lambda other: self._row(other).rank, default=None)
        for other in complete:
            if other != best:
                self._found[other] = [replace(swept, fitted=None) for swept in self._found[other]]


def _heads_wanted(plan: SweepPlan, number: int, shots: int | None, rounds: Sequence[Round]) -> int:
    cases = [case for round_ in rounds if round_.shots == shots for case in round_.cases]
    solved = plan.combinations[number].config.architecture.solved
    return len({id(case.cut) for case in cases}) if solved else len(cases)


def estimated(heads: Sequence[SweptHead], *, seed: int) -> Estimate | None:
    """What heads of one row say together; None where none was judged. `seed`: the bootstrap's.

    Folds are pooled: every image counts the same, and with several seeds the accuracy is the mean of theirs.
    """
    judged = [(head, head.judged) for head in heads if head.judged is not None]
    scores = [score for _, score in judged if score is not None]
    if not scores:
        return None
    accuracies = [score.accuracy for score in scores]
    spread = statistics.stdev(accuracies) if len(scores) > 1 else None
    if heads[0].fold is None:
        interval = mean_interval(accuracies) if heads[0].draw is not None else None
        loss = statistics.fmean(score.loss for score in scores)
        return Estimate(accuracy=statistics.fmean(accuracies), loss=loss, spread=spread, interval=interval)
    weights = [head.held_images for head, _ in judged]
    accuracy = statistics.fmean(accuracies, weights)
    images = round(sum(weights) / len({head.seed for head, _ in judged}))
    return Estimate(
        accuracy=accuracy,
        loss=statistics.fmean((score.loss for score in scores), weights),
        spread=spread,
        interval=accuracy_interval(round(accuracy * images), images, seed=seed),
    )


# --- choosing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """The head that becomes a run."""

    swept: Swept
    fitted: Fitted

    def written(self, ground: Ground, runs_dir: Path, created: datetime, sweep_: str) -> Run:
        """Look at test, and write it."""
        record = self.swept.record
        notes = (*self.fitted.notes, f"chosen by the sweep {sweep_}")
        if record.draw is not None:
            images = self.swept.prepared.cut.train.images
            notes = (*notes, f"trained on {images} images only: draw {record.draw} of that sweep")
        fitted = replace(self.fitted, notes=notes)
        return conclude(
            self.swept.prepared,
            self.swept.config,
            fitted,
            runs_dir=runs_dir,
            created=created,
            interruption=ground.interruption,
        )


def _chosen(results: _Results, plan: SweepPlan, ground: Ground) -> tuple[tuple[SweepRow, ...], _Choice | None]:
    """All rows, ranked, and the best head of the first. Raises HeadError where no head is any good."""
    found = results.rows()
    keys = {id(row): key for key, row in found.items()}
    rows = ranked(list(found.values()))
    if all(row.estimate is None for row in rows):
        troubles = [head.trouble for row in rows for head in row.heads if head.trouble is not None]
        raise HeadError(f"none of {len(troubles)} heads could be trained: {troubles[0]}", hint="a grid with lower lr")
    if plan.folds is not None:
        return rows, None if results.interrupted else _fitted_on_all(ground, rows[0])
    winners = [next(row for row in rows if row.shots == shots) for shots in dict.fromkeys(row.shots for row in rows)]
    tested = {id(row): _tested(row, results.heads(keys[id(row)])) for row in winners if row.shots is not None}
    best = max(results.heads(keys[id(rows[0])]), key=_goodness)
    assert best.fitted is not None
    choice = _Choice(swept=best, fitted=best.fitted())
    return tuple(tested.get(id(row), row) for row in rows), choice


def _goodness(swept: Swept) -> tuple[float, float]:
    score = swept.record.judged
    return (-1.0, 0.0) if score is None else (score.accuracy, -score.loss)


def _fitted_on_all(ground: Ground, best: SweepRow) -> _Choice:
    """Folds choose options, not a head: it is trained now, on train and val as `train_head` cuts them."""
    prepared = prepare(ground.caches[0], best.config, beside=ground.caches[1:], place=ground.place)
    fitted = fit_prepared(prepared, best.config, resident_bytes=ground.resident_bytes, interruption=ground.interruption)
    record = SweptHead(seed=best.config.seed)
    return _Choice(
        swept=Swept(number=0, record=record, config=best.config, prepared=prepared, fitted=None), fitted=fitted
    )


def _tested(row: SweepRow, heads: Sequence[Swept]) -> SweepRow:
    """The chosen row of a number of shots, with all its draws on test; as it is where there is no test."""
    records = {swept.record.draw: replace(swept.record, test=_test_score(swept)) for swept in heads}
    scores = [record.test for record in records.values() if record.test is not None]
    if not scores:
        return row
    accuracies = [score.accuracy for score in scores]
    test = Estimate(
        accuracy=statistics.fmean(accuracies),
        loss=statistics.fmean(score.loss for score in scores),
        spread=statistics.stdev(accuracies) if len(scores) > 1 else None,
        interval=mean_interval(accuracies),
    )
    return replace(row, heads=tuple(records.get(head.draw, head) for head in row.heads), test=test)


def _test_score(swept: Swept) -> Score | None:
    prepared: Prepared = swept.prepared
    if "test" not in prepared.rows or swept.fitted is None:
        return None
    rows = StreamedBatches(
        prepared.rows["test"], batch_size=swept.config.head_batch_size, seed=0, device=prepared.place
    )
    return evaluate(swept.fitted().head, rows).score()


def _chosen_case(choice: _Choice | None) -> Mapping[str, int | None]:
    return {"seed": choice.swept.config.seed if choice else None, "draw": choice.swept.record.draw if choice else None}
