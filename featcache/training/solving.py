"""Fit a head with a solver on prepared rows. Does not import torch, because importing it takes longer than solving."""

from __future__ import annotations

import time

from featcache.heads.candidates import choose
from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.solved import outcome_of
from featcache.heads.solvers import solve
from featcache.heads.stopping import Interruption
from featcache.heads.target_scale import TargetScale
from featcache.rows.notes import Report, report_notes
from featcache.training.fit_result import FitResult
from featcache.training.preparation import Prepared
from featcache.training.texts import text_candidates, text_head


def fit_solved(
    prepared: Prepared,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    interruption: Interruption | None = None,
) -> FitResult:
    """Solve a head for all candidates, and return the best one on val; the test rows are not read."""
    train, val, target = prepared.rows["train"], prepared.rows["val"], prepared.target
    began = time.perf_counter()
    interruption = interruption or Interruption()
    notes: tuple[str, ...] = ()
    if config.architecture.templates:
        text = text_head(config.architecture, val, target)
        choice = choose(text_candidates(text, val, target), interruption=interruption, progress=progress)
        notes = text.notes
    else:
        choice = solve(
            config.architecture.kind,
            train,
            val,
            target,
            device=prepared.device_name,
            interruption=interruption,
            progress=progress,
        )
    head = choice.candidate.build()
    seconds = time.perf_counter() - began
    notes = (*choice.notes(), *notes)
    report_notes(report, notes)
    scale = TargetScale.of(train.targets).deviation if target.kind == "numbers" else None
    outcome = outcome_of(head, val, target, scale=scale)
    return FitResult(
        head=head,
        val=outcome,
        last=outcome.score(),
        history=choice.history,
        best_epoch=choice.number,
        interrupted=choice.interrupted,
        seconds=seconds,
        notes=notes,
    )
