"""Ranks the rows of a trained sweep, chooses heads, evaluates them on test and writes them as runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from featcache.errors import HeadError
from featcache.heads.records import Score
from featcache.heads.stopping import Interruption
from featcache.rows.batches import StreamedBatches
from featcache.runs.run import Run
from featcache.runs.saving import evaluate_and_save
from featcache.sweeps.fits import SweepContext, SweepTrial
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.records import SweepRow, TrialResult, rank_rows
from featcache.sweeps.results import SweepResults, mean_estimate, over_images
from featcache.training.evaluation import evaluate
from featcache.training.fit import fit
from featcache.training.fit_result import FitResult
from featcache.training.preparation import Prepared, prepare


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A chosen head, which is written as a run.

    Attributes:
        trial: The head as the sweep trained it.
        fitted: The head with its outputs for val.
        shots: Train images per class; None for all.
        draws: Number of random draws of so many images.
    """

    trial: SweepTrial
    fitted: FitResult
    shots: int | None = None
    draws: int = 1

    def write(self, runs_dir: Path, created: datetime, sweep_name: str, interruption: Interruption) -> Run:
        """Evaluate the head on test and write the run."""
        record = self.trial.record
        notes = (*self.fitted.notes, f"chosen by the sweep {sweep_name}")
        if record.draw is not None:
            images = len(self.trial.prepared.cut.train)
            notes = (*notes, f"trained on {images} images only: draw {record.draw} of that sweep")
        return evaluate_and_save(
            self.trial.prepared,
            self.trial.config,
            replace(self.fitted, notes=notes),
            runs_dir=runs_dir,
            created=created,
            interruption=interruption,
            resampling=self._resampling(),
        )

    def _resampling(self) -> dict[str, dict[str, Any]] | None:
        """What draws the same images again, and chooses the same of the heads on them; None without draws."""
        record = self.trial.record
        if record.draw is None:
            return None
        # Each draw has its own seed, counted from that of the sweep.
        return {
            "head": {"seed": record.seed - record.draw + 1},
            "sweep": {"shots": [self.shots], "draws": self.draws},
        }


def rank_and_choose(
    results: SweepResults, plan: SweepPlan, contexts: Sequence[SweepContext]
) -> tuple[tuple[SweepRow, ...], dict[int, Choice]]:
    """Rank the rows and choose the heads that become runs.

    Args:
        results: The trained heads.
        plan: The sweep's plan.
        contexts: One per cache.

    Returns:
        All rows, the best first, and the chosen heads by row number: the head of row 0, or with `plan.every` the best
        head of every row.

    Raises:
        HeadError: No head could be trained.
    """
    found = results.rows()
    keys = {id(row): key for key, row in found.items()}
    rows = rank_rows(list(found.values()))
    _require_a_head(rows)
    if plan.folds is not None:
        choice = None if results.interrupted else _fit_on_all(contexts[rows[0].cache], rows[0])
        return rows, {} if choice is None else {0: choice}
    heads = [results.heads(keys[id(row)]) for row in rows]
    tested = range(len(rows)) if plan.every else _best_of_shots(rows)
    written = range(len(rows)) if plan.every else [0]
    choices = {number: _best(heads[number]) for number in written if heads[number]}
    choices = {number: replace(one, shots=rows[number].shots, draws=plan.draws) for number, one in choices.items()}
    return tuple(_test_row(row, heads[number]) if number in tested else row for number, row in enumerate(rows)), choices


def _require_a_head(rows: Sequence[SweepRow]) -> None:
    if rows[0].estimate is None:
        troubles = [head.trouble for row in rows for head in row.heads if head.trouble is not None]
        raise HeadError(
            f"none of {len(troubles)} heads could be trained: {troubles[0]}", hint="a grid of lower learning rates"
        )


def _best_of_shots(rows: Sequence[SweepRow]) -> list[int]:
    """The number of the best row for each value of `shots`."""
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


def _fit_on_all(context: SweepContext, best: SweepRow) -> Choice | None:
    """Train the best combination of a sweep with folds once more, on train and val as `train_head` cuts them.

    Folds select options, not a head. None if Ctrl-C came before there was a head.
    """
    config = best.config
    prepared = prepare(context.caches[0], config, beside=context.caches[1:], device=context.device)
    try:
        fitted = fit(
            prepared,
            config,
            resident_bytes=context.resident_bytes,
            interruption=context.interruption,
            threads=context.threads,
        )
    except KeyboardInterrupt:
        if context.interruption.aborted:
            raise
        return None
    trial = SweepTrial(number=0, record=TrialResult(seed=config.seed), config=config, prepared=prepared)
    return Choice(trial=trial, fitted=fitted)


def _test_row(row: SweepRow, trials: Sequence[SweepTrial]) -> SweepRow:
    """The row with its heads evaluated on test; unchanged without test images."""
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
