"""Runs a sweep: fits its heads, ranks them, and writes the best head as a run and the sweep as a record.

Val ranks the heads (with folds, the held-out images). Test is evaluated after everything has been decided: for the
chosen head, or for every head if the plan sets `every`.
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
from featcache.rows.notes import Report, report_notes
from featcache.rows.views import views_notes
from featcache.runs.fit import RUNS_DIR
from featcache.runs.run import Run, folder_name, prepare_runs_dir
from featcache.sweeps.choosing import Choice, rank_and_choose
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
    """Run a sweep from a plan.

    Args:
        caches: The caches that the plan's combinations refer to by index.
        plan: The sweep's plan.
        how: Device, threads and memory; None for the defaults.
        beside: Caches whose features are joined to those of each cache.
        runs_dir: The folder that holds runs.
        progress: Called with (epochs done, epochs in total).
        report: Called with a sentence about anything that was left out.
        stack_bytes: Memory for heads in training, in bytes; None for a share of the free memory.
        created: The time in UTC that names the folders; None for now.
        name: The name of the sweep's folder; None for a name made of time and backbones.
        checkpoint_every_s: Least time between two checkpoints, in seconds.
        resumed: The checkpoint of the same sweep to continue from.

    Returns:
        The sweep, which is written too.
    """
    how = how or TrainingOptions()
    runs_dir, began = Path(runs_dir), time.perf_counter()
    prepare_runs_dir(runs_dir)
    requested, plan = len(plan.combinations), plan.for_caches(caches, beside)
    if missing := requested - len(plan.combinations):
        report_notes(
            report,
            [f"{missing} of {requested} combinations are left out: their cache lacks the layer, or a text encoder"],
        )
    require_same_rows(caches, plan)
    whole = cut_of(caches[0], plan.first)
    notes = (*whole.notes, *_views_notes(plan, caches[0]))
    report_notes(report, notes)
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
                device=choose_device(how.device),
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
        results.collect(_fit_rounds(contexts, plan, rounds, _Counter(plan, rounds[0], progress)), interruption)
        rows, choices = rank_and_choose(results, plan, contexts)
        runs = {number: one.write(runs_dir, created, name, interruption) for number, one in choices.items()}
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
            **_plan_fields(plan, choices.get(0)),
        )
        write_sweep(found, unfinished.checkpoint if found.interrupted else None)
    return found


def _read_rows(
    caches: Sequence[FeatureCache],
    beside: Sequence[FeatureCache],
    plan: SweepPlan,
    rounds: Sequence[Sequence[Round]],
) -> list[Prepared]:
    """The rows of every group of combinations that read the same features; no features are read yet."""
    return [
        prepare(
            caches[cache],
            plan.combinations[numbers[0]].config,
            beside=beside,
            device="cpu",
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
    """What a checkpoint records of the sweep: everything that must be the same when it is resumed, and its date."""
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
    """Notes on augmented views, if all heads use the same; otherwise the table has a column for it."""
    ways = {one.config.train_views for one in plan.combinations}
    return views_notes(cache.spec, ways.pop() if len(ways) == 1 else None)


def _with_runs(rows: Sequence[SweepRow], runs: Mapping[int, Run]) -> tuple[SweepRow, ...]:
    """The rows with their run folders; `runs` is by row number."""
    return tuple(replace(row, run=runs[number].folder) if number in runs else row for number, row in enumerate(rows))


def _plan_fields(plan: SweepPlan, choice: Choice | None) -> dict[str, Any]:
    """The fields of the record that are taken from the plan, and seed and draw of the chosen head."""
    record = None if choice is None else choice.trial.record
    planned = {name: getattr(plan, name) for name in ("grid", "seeds", "folds", "shots", "draws")}
    return planned | {"chosen": {"seed": record and record.seed, "draw": record and record.draw}}


# --- fitting -----------------------------------------------------------------------------------------------


def _fit_rounds(
    contexts: Sequence[SweepContext], plan: SweepPlan, rounds: Sequence[Sequence[Round]], counter: _Counter
) -> Iterable[tuple[Round, SweepTrial]]:
    for (cache, _), numbers in plan.groups().items():
        # A missing layer raises now, not after the layers before it have been trained on.
        contexts[cache].prepare_case(plan.combinations[numbers[0]].config, rounds[cache][0].cases[0])
    for (cache, _), numbers in plan.groups().items():
        configs = [(number, plan.combinations[number].config) for number in numbers]
        for round_ in rounds[cache]:
            for trial in fit_round(contexts[cache], configs, round_, counter.advance):
                yield round_, trial


class _Counter:
    """Counts the epochs of all heads; a head that stops early counts as all its epochs."""

    def __init__(self, plan: SweepPlan, rounds: Sequence[Round], progress: SweepProgress | None) -> None:
        cases = sum(len(round_.cases) for round_ in rounds)
        self._total = cases * sum(one.config.max_epochs for one in plan.combinations)
        self._done = 0.0
        self._progress = progress

    def advance(self, epochs: float) -> None:
        """Add finished epochs and report the total."""
        self._done += epochs
        if self._progress is not None:
            self._progress(min(round(self._done), self._total), self._total)
