"""A sweep is carried out: its heads are fitted, ranked, and the best one written.

Val ranks (with folds, the images that were held out); test is looked at after everything has been decided, for the
chosen head alone unless the plan asks for every head. A chosen head becomes an ordinary run, the sweep a record beside
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.stopping import Interruption
from featcache.rows.devices import choose_device
from featcache.rows.notes import Report, tell
from featcache.rows.views import views_notes
from featcache.runs.fit import RUNS_DIR
from featcache.runs.run import Run, folder_name, prepare_runs_dir
from featcache.sweeps.choosing import Choice, chosen
from featcache.sweeps.fits import SweepContext, SweepTrial, fit_round
from featcache.sweeps.keeping import TrialKeeper
from featcache.sweeps.plan import Round, SweepPlan, require_same_rows, rounds_of
from featcache.sweeps.records import Sweep, SweepRow
from featcache.sweeps.results import SweepResults
from featcache.sweeps.tables import write_sweep
from featcache.training.checkpoints import EVERY_S, Checkpoint, Unfinished, rows_digest
from featcache.training.options import TrainingOptions
from featcache.training.preparation import Prepared, cut_of, prepare

SweepProgress = Callable[[int, int], None]


def sweep_heads(
    caches: Sequence[FeatureCache],
    plan: SweepPlan,
    how: TrainingOptions | None = None,
    *,
    beside: Sequence[FeatureCache] = (),
    runs_dir: Path | str = RUNS_DIR,
    progress: SweepProgress | None = None,
    report: Report | None = None,
    stack_bytes: int | None = None,
    created: datetime | None = None,
    name: str | None = None,
    checkpoint_every_s: float = EVERY_S,
    resumed: Checkpoint | None = None,
) -> Sweep:
    """`sweep` for what is a plan for these caches already.

    Args:
        caches: Each is one of the alternatives that the plan's combinations name by number.
        beside: Caches whose features stand beside those of each of them.
        stack_bytes: Memory that heads in training may take; None for a share of what is free.
        created: The time in UTC that names the folders; None for now.
        name: The sweep's folder; None for one made of time and backbones.
        checkpoint_every_s: Seconds between two checkpoints, at least.
        resumed: The checkpoint of the same sweep from which it goes on.
    """
    how = how or TrainingOptions()
    runs_dir, began = Path(runs_dir), time.perf_counter()
    prepare_runs_dir(runs_dir)
    asked, plan = len(plan.combinations), plan.for_caches(caches, beside)
    if missing := asked - len(plan.combinations):
        tell(report, [f"{missing} of {asked} combinations are left out: their cache does not hold the layer"])
    require_same_rows(caches, plan)
    whole = cut_of(caches[0], plan.first)
    notes = (*whole.notes, *_views_notes(plan, caches[0]))
    tell(report, notes)
    rounds = [rounds_of(cache, plan) for cache in caches]
    created = created or datetime.now(UTC)
    every = (*caches, *beside)
    name = name or folder_name(created, [cache.spec.backbone for cache in every], "sweep")
    stacks: list[int] = []
    digest = rows_digest(*_read_rows(caches, beside, plan, rounds))
    if resumed is not None and digest != resumed.about["rows"]:
        raise HeadError("the caches hold other rows or targets than when this sweep began", hint="sweep again")
    about = _about(plan, caches, beside, how, created=created, digest=digest)
    unfinished = Unfinished.of(runs_dir, name, about=about, every_s=checkpoint_every_s)
    if resumed is not None:
        unfinished.claim()
    with unfinished, Interruption() as interruption:
        keeper = TrialKeeper(unfinished, resumed)
        contexts = [
            SweepContext(
                caches=(cache, *beside),
                place=choose_device(how.device),
                interruption=interruption,
                report=report,
                threads=how.threads,
                resident_bytes=how.resident_bytes,
                stack_bytes=stack_bytes,
                stacks=stacks,
                keeper=keeper,
            )
            for cache in caches
        ]
        results = SweepResults(plan, rounds[0], val_images=len(whole.val))
        results.collect(_fitted_rounds(contexts, plan, rounds, _Counter(plan, rounds[0], progress)), interruption)
        rows, choices = chosen(results, plan, contexts)
        runs = {number: one.written(runs_dir, created, name, interruption) for number, one in choices.items()}
        run = runs.get(0)
        found = Sweep(
            folder=runs_dir / name,
            created=created.isoformat(timespec="seconds"),
            caches=tuple(str(cache.path) for cache in every),
            rows=_with_runs(rows, runs),
            run=None if run is None else run.folder,
            test=None if run is None else run.training.test,
            images=whole.images(),
            notes=notes,
            seconds=time.perf_counter() - began,
            interrupted=interruption.requested or results.interrupted,
            stacks=tuple(sorted(stacks, reverse=True)),
            **_settled(plan, choices.get(0)),
        )
        write_sweep(found, unfinished.checkpoint if found.interrupted else None)
    return found


def _read_rows(
    caches: Sequence[FeatureCache],
    beside: Sequence[FeatureCache],
    plan: SweepPlan,
    rounds: Sequence[Sequence[Round]],
) -> list[Prepared]:
    """The rows of every group of combinations that read the same features, none of them read."""
    return [
        prepare(
            caches[cache],
            plan.combinations[numbers[0]].config,
            beside=beside,
            place="cpu",
            cut=rounds[cache][0].cases[0].cut,
        )
        for (cache, _), numbers in plan.groups().items()
    ]


def _about(
    plan: SweepPlan,
    caches: Sequence[FeatureCache],
    beside: Sequence[FeatureCache],
    how: TrainingOptions,
    *,
    created: datetime,
    digest: str,
) -> dict[str, Any]:
    """What is trained on what: all that has to be the same for a sweep to go on, and its date."""
    return {
        "created": created.isoformat(),
        "sweep": plan.to_json(),
        "alternatives": [str(cache.path) for cache in caches],
        "beside": [str(cache.path) for cache in beside],
        "caches": [str(cache.path) for cache in (*caches, *beside)],
        "rows": digest,
        "device": how.device,
        "threads": how.threads,
    }


def _views_notes(plan: SweepPlan, cache: FeatureCache) -> tuple[str, ...]:
    """What all heads see of augmentation; where they differ, the table has a column for it."""
    ways = {one.config.train_views for one in plan.combinations}
    return views_notes(cache.spec, ways.pop() if len(ways) == 1 else None)


def _with_runs(rows: Sequence[SweepRow], runs: Mapping[int, Run]) -> tuple[SweepRow, ...]:
    """The rows with the runs that were written of them, by the number of the row."""
    return tuple(replace(row, run=runs[number].folder) if number in runs else row for number, row in enumerate(rows))


def _settled(plan: SweepPlan, choice: Choice | None) -> dict[str, Any]:
    """What the record takes from the plan, and the case of the chosen head."""
    record = None if choice is None else choice.trial.record
    planned = {name: getattr(plan, name) for name in ("grid", "seeds", "folds", "shots", "draws")}
    return planned | {"chosen": {"seed": record and record.seed, "draw": record and record.draw}}


# --- fitting -----------------------------------------------------------------------------------------------


def _fitted_rounds(
    contexts: Sequence[SweepContext], plan: SweepPlan, rounds: Sequence[Sequence[Round]], counter: _Counter
) -> Iterable[tuple[Round, SweepTrial]]:
    for (cache, _), numbers in plan.groups().items():
        # A layer that is not there shows now, not after those before it have been trained on.
        contexts[cache].prepared(plan.combinations[numbers[0]].config, rounds[cache][0].cases[0])
    for (cache, _), numbers in plan.groups().items():
        configs = [(number, plan.combinations[number].config) for number in numbers]
        for round_ in rounds[cache]:
            for trial in fit_round(contexts[cache], configs, round_, counter.advance):
                yield round_, trial


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
