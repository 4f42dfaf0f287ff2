"""A head that is solved at once, from prepared rows. No torch here, so that it is done before torch were imported."""

from __future__ import annotations

import time

from featcache.heads.config import HeadConfig
from featcache.heads.records import Progress
from featcache.heads.solved import outcome_of
from featcache.heads.solvers import solve
from featcache.heads.stopping import Interruption
from featcache.heads.target_scale import TargetScale
from featcache.rows.notes import Report, tell
from featcache.training.fitted import Fitted
from featcache.training.preparation import Prepared


def fit_solved(
    prepared: Prepared,
    config: HeadConfig,
    *,
    progress: Progress | None = None,
    report: Report | None = None,
    interruption: Interruption | None = None,
) -> Fitted:
    """The best candidate on val of a head that is solved at once; the test rows are not touched."""
    train, val, target = prepared.rows["train"], prepared.rows["val"], prepared.target
    began = time.perf_counter()
    choice = solve(
        config.architecture.kind,
        train,
        val,
        target,
        device=prepared.place,
        interruption=interruption or Interruption(),
        progress=progress,
    )
    head = choice.candidate.build()
    seconds = time.perf_counter() - began
    tell(report, choice.notes())
    scale = TargetScale.of(train.targets).deviation if target.kind == "numbers" else None
    outcome = outcome_of(head, val, target, scale=scale)
    return Fitted(
        head=head,
        val=outcome,
        last=outcome.score(),
        history=choice.history,
        best_epoch=choice.number,
        interrupted=choice.interrupted,
        seconds=seconds,
        notes=choice.notes(),
    )
