"""After all heads of a sweep are trained: rows are ranked, heads chosen and tested, and become runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from featcache.errors import HeadError
from featcache.heads.records import Score
from featcache.heads.stopping import Interruption
from featcache.rows.batches import StreamedBatches
from featcache.runs.conclusion import conclude
from featcache.runs.run import Run
from featcache.sweeps.fits import SweepContext, SweepTrial
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.records import SweepRow, TrialResult, ranked
from featcache.sweeps.results import SweepResults, mean_estimate, over_images
from featcache.training.evaluation import evaluate
from featcache.training.fit import fit
from featcache.training.fitted import Fitted
from featcache.training.preparation import Prepared, prepare


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A head that becomes a run.

    Attributes:
        trial: The head as the sweep trained it.
        fitted: The head with its outputs for val.
    """

    trial: SweepTrial
    fitted: Fitted

    def written(self, runs_dir: Path, created: datetime, sweep_name: str, interruption: Interruption) -> Run:
        """Look at test, and write the run."""
        record = self.trial.record
        notes = (*self.fitted.notes, f"chosen by the sweep {sweep_name}")
        if record.draw is not None:
            images = len(self.trial.prepared.cut.train)
            notes = (*notes, f"trained on {images} images only: draw {record.draw} of that sweep")
        return conclude(
            self.trial.prepared,
            self.trial.config,
            replace(self.fitted, notes=notes),
            runs_dir=runs_dir,
            created=created,
            interruption=interruption,
        )


def chosen(
    results: SweepResults, plan: SweepPlan, contexts: Sequence[SweepContext]
) -> tuple[tuple[SweepRow, ...], dict[int, Choice]]:
    """Rank the rows and choose the heads that become runs.

    Args:
        results: All that was trained.
        plan: What was to be trained.
        contexts: Those of the caches.

    Returns:
        All rows, the best first, and the chosen heads by the number of their row: that of row 0, or of every row
        where the plan says so.

    Raises:
        HeadError: No head could be trained.
    """
    found = results.rows()
    keys = {id(row): key for key, row in found.items()}
    rows = ranked(list(found.values()))
    _require_a_head(rows)
    if plan.folds is not None:
        choice = None if results.interrupted else _fitted_on_all(contexts[rows[0].cache], rows[0])
        return rows, {} if choice is None else {0: choice}
    heads = [results.heads(keys[id(row)]) for row in rows]
    tested = range(len(rows)) if plan.every else _best_of_shots(rows)
    written = range(len(rows)) if plan.every else [0]
    choices = {number: _best(heads[number]) for number in written if heads[number]}
    return tuple(_tested(row, heads[number]) if number in tested else row for number, row in enumerate(rows)), choices


def _require_a_head(rows: Sequence[SweepRow]) -> None:
    if rows[0].estimate is None:
        troubles = [head.trouble for row in rows for head in row.heads if head.trouble is not None]
        raise HeadError(
            f"none of {len(troubles)} heads could be trained: {troubles[0]}", hint="a grid of lower learning rates"
        )


def _best_of_shots(rows: Sequence[SweepRow]) -> list[int]:
    """The number of the best row of each number of shots."""
    first: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row.shots is not None:
            first.setdefault(row.shots, number)
    return list(first.values())


def _best(trials: Sequence[SweepTrial]) -> Choice:
    best = max(trials, key=_goodness)
    assert best.fitted is not None
    return Choice(trial=best, fitted=best.fitted())


def _goodness(trial: SweepTrial) -> tuple[float, float]:
    score = trial.record.judged
    return (-math.inf, 0.0) if score is None else (score.value, -score.loss)


def _fitted_on_all(context: SweepContext, best: SweepRow) -> Choice | None:
    """Folds choose options, not a head: it is trained now, on train and val as `train_head` cuts them.

    None where a Ctrl-C came before there was one.
    """
    config = best.config
    prepared = prepare(context.caches[0], config, beside=context.caches[1:], place=context.place)
    try:
        fitted = fit(
            prepared,
            config,
            resident_bytes=context.resident_bytes,
            interruption=context.interruption,
            threads=context.threads,
        )
    except KeyboardInterrupt:
        if context.interruption.insisted:
            raise
        return None
    trial = SweepTrial(number=0, record=TrialResult(seed=config.seed), config=config, prepared=prepared)
    return Choice(trial=trial, fitted=fitted)


def _tested(row: SweepRow, trials: Sequence[SweepTrial]) -> SweepRow:
    """A row with its heads on test; as it is where there is no test."""
    records = {
        (trial.record.seed, trial.record.draw): replace(trial.record, test=_test_score(trial)) for trial in trials
    }
    scores = [record.test for record in records.values() if record.test is not None]
    if not scores:
        return row
    test = mean_estimate(scores, independent=row.shots is not None)
    if row.shots is None:
        test = over_images(test, len(trials[0].prepared.rows["test"]))
    return replace(row, heads=tuple(records.get((head.seed, head.draw), head) for head in row.heads), test=test)


def _test_score(trial: SweepTrial) -> Score | None:
    prepared: Prepared = trial.prepared
    if "test" not in prepared.rows or trial.head is None:
        return None
    rows = StreamedBatches(
        prepared.rows["test"], batch_size=trial.config.head_batch_size, seed=0, device=prepared.device
    )
    return evaluate(trial.head(), rows, prepared.target, scale=trial.scale, loss=trial.config.loss).score()
