"""Many heads over one cache: which options are best, how much seeds scatter, what few images or other folds would give.

    found = sweep(cache, "mlp:128,64", grid={"lr": [1e-3, 1e-2], "weight_decay": [0, 1e-4]}, seeds=3)
    found.best.said, found.run, found.test

Val ranks (with folds, the images that were held out); test is looked at for the chosen head alone, after everything
has been decided. The chosen head becomes an ordinary run, the sweep a record beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, InvalidOption
from featcache.heads.metrics import evaluate
from featcache.heads.records import Score
from featcache.heads.stopping import Interruption
from featcache.rows.batches import StreamedBatches
from featcache.rows.cuts import cut_cache
from featcache.rows.devices import choose_device
from featcache.rows.notes import Report, tell
from featcache.rows.views import views_notes
from featcache.runs.conclusion import conclude
from featcache.runs.run import Run, folder_name, prepare_runs_dir
from featcache.sweep.fits import Ground, Swept, fit_round
from featcache.sweep.grid import Grid
from featcache.sweep.plan import Round, SweepPlan, rounds_of
from featcache.sweep.records import Sweep, SweepRow, SweptHead, ranked
from featcache.sweep.results import SweepResults, mean_estimate
from featcache.sweep.tables import write_sweep
from featcache.training.fitted import Fitted
from featcache.training.fitting import fit_prepared
from featcache.training.preparation import Prepared, prepare

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
    threads: int | None = None,
    resident_bytes: int | None = None,
    progress: SweepProgress | None = None,
    report: Report | None = None,
    **options: Any,
) -> Sweep:
    """Train a head for every combination of `grid`, rank them, and write the best one as a run.

    `grid`: lists of values by the name of an option of `train_head`, and `hidden` for the sizes of hidden layers
    (`[64, (128, 64)]`); all other options are those of `train_head`, in `options`. `seeds`: train every combination
    so many times, and rank by the mean. `folds`: hold out each of so many parts of train once, and rank by the
    accuracy there. `shots`: train on so many images a class, in `draws` (5) random draws, for each number given.
    `threads`: torch's while heads are trained by steps on the CPU; None for what is measured to be fastest.
    `resident_bytes`: as `train_head`'s. `progress` is called with (epochs done, epochs in all); a head that stops early
    has done all of its own.

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
        return sweep_heads(
            caches,
            plan,
            runs_dir=runs_dir,
            device=device,
            threads=threads,
            resident_bytes=resident_bytes,
            progress=progress,
            report=report,
        )


def sweep_heads(
    caches: Sequence[FeatureCache],
    plan: SweepPlan,
    *,
    runs_dir: Path | str = Path("runs"),
    device: str = "auto",
    threads: int | None = None,
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
    if threads is not None and threads < 1:
        raise InvalidOption(f"expected --threads of at least 1, got {threads}")
    runs_dir, began = Path(runs_dir), time.perf_counter()
    prepare_runs_dir(runs_dir)
    plan = plan.for_views(caches[0].spec.views)
    whole = cut_cache(caches[0], val_fraction=plan.first.val_fraction, val_seed=plan.first.val_seed)
    notes = (*whole.notes, *_views_notes(plan, caches[0]))
    tell(report, notes)
    rounds = rounds_of(caches[0], plan)
    created = created or datetime.now(UTC)
    name = folder_name(created, [cache.spec.backbone for cache in caches], "sweep")
    with Interruption() as interruption:
        ground = Ground(
            caches=tuple(caches),
            place=choose_device(device),
            interruption=interruption,
            report=report,
            threads=threads,
            resident_bytes=resident_bytes,
            stack_bytes=stack_bytes,
        )
        results = SweepResults(plan, rounds)
        results.collect(_fitted_rounds(ground, plan, rounds, _Counter(plan, rounds, progress)), interruption)
        rows, choice = _chosen(results, plan, ground)
        run = None if choice is None else choice.written(runs_dir, created, name, interruption)
        found = Sweep(
            folder=runs_dir / name,
            created=created.isoformat(timespec="seconds"),
            caches=tuple(str(cache.path) for cache in caches),
            rows=rows,
            run=None if run is None else run.folder,
            test=None if run is None else run.training.test,
            images=whole.images(),
            notes=notes,
            seconds=time.perf_counter() - began,
            interrupted=interruption.requested or results.interrupted,
            stacks=tuple(sorted(ground.stacks, reverse=True)),
            **_settled(plan, choice),
        )
        write_sweep(found)
    return found


def _views_notes(plan: SweepPlan, cache: FeatureCache) -> tuple[str, ...]:
    """What all heads see of augmentation; where they differ, the table has a column for it."""
    ways = {one.config.train_views for one in plan.combinations}
    return views_notes(cache.spec, ways.pop() if len(ways) == 1 else None)


def _settled(plan: SweepPlan, choice: _Choice | None) -> dict[str, Any]:
    """What the record takes from the plan, and the case of the chosen head."""
    record = None if choice is None else choice.swept.record
    said = {name: getattr(plan, name) for name in ("grid", "seeds", "folds", "shots", "draws")}
    return said | {"chosen": {"seed": record and record.seed, "draw": record and record.draw}}


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


# --- choosing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choice:
    """The head that becomes a run."""

    swept: Swept
    fitted: Fitted

    def written(self, runs_dir: Path, created: datetime, sweep_name: str, interruption: Interruption) -> Run:
        """Look at test, and write it."""
        record = self.swept.record
        notes = (*self.fitted.notes, f"chosen by the sweep {sweep_name}")
        if record.draw is not None:
            images = len(self.swept.prepared.cut.train)
            notes = (*notes, f"trained on {images} images only: draw {record.draw} of that sweep")
        fitted = replace(self.fitted, notes=notes)
        return conclude(
            self.swept.prepared,
            self.swept.config,
            fitted,
            runs_dir=runs_dir,
            created=created,
            interruption=interruption,
        )


def _chosen(results: SweepResults, plan: SweepPlan, ground: Ground) -> tuple[tuple[SweepRow, ...], _Choice | None]:
    """All rows, ranked, and the best head of the first. Raises HeadError where no head is any good."""
    found = results.rows()
    keys = {id(row): key for key, row in found.items()}
    rows = ranked(list(found.values()))
    if rows[0].estimate is None:
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


def _fitted_on_all(ground: Ground, best: SweepRow) -> _Choice | None:
    """Folds choose options, not a head: it is trained now, on train and val as `train_head` cuts them.

    None where a Ctrl-C came before there was one.
    """
    config = best.config
    prepared = prepare(ground.caches[0], config, beside=ground.caches[1:], place=ground.place)
    try:
        fitted = fit_prepared(
            prepared,
            config,
            resident_bytes=ground.resident_bytes,
            interruption=ground.interruption,
            threads=ground.threads,
        )
    except KeyboardInterrupt:
        if ground.interruption.insisted:
            raise
        return None
    swept = Swept(number=0, record=SweptHead(seed=config.seed), config=config, prepared=prepared)
    return _Choice(swept=swept, fitted=fitted)


def _tested(row: SweepRow, heads: Sequence[Swept]) -> SweepRow:
    """The chosen row of a number of shots, with all its draws on test; as it is where there is no test."""
    records = {swept.record.draw: replace(swept.record, test=_test_score(swept)) for swept in heads}
    scores = [record.test for record in records.values() if record.test is not None]
    if not scores:
        return row
    test = mean_estimate(scores, independent=True)
    return replace(row, heads=tuple(records.get(head.draw, head) for head in row.heads), test=test)


def _test_score(swept: Swept) -> Score | None:
    prepared: Prepared = swept.prepared
    if "test" not in prepared.rows or swept.head is None:
        return None
    rows = StreamedBatches(
        prepared.rows["test"], batch_size=swept.config.head_batch_size, seed=0, device=prepared.place
    )
    return evaluate(swept.head(), rows).score()
