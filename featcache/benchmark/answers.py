"""What a trained head says, and how it came to that: what two trainings are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.benchmark.records import Curve
from featcache.benchmark.training import Trained
from featcache.heads.records import EpochRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """A trained head's logits on val and test: float32 (N, C); labels int64 (N,); and how it came to them."""

    curve: Curve
    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]


def answers_of(trained: Trained) -> Answers:
    """What the head of a training says."""
    outcomes = {"val": trained.val} | ({} if trained.test is None else {"test": trained.test})
    return Answers(
        curve=curve_of(trained.history, trained.step_losses),
        logits={part: outcome.outputs for part, outcome in outcomes.items()},
        labels={part: outcome.targets for part, outcome in outcomes.items()},
    )


def curve_of(history: Sequence[EpochRecord], step_losses: NDArray[np.float32] | None = None) -> Curve:
    """A training's history as a record keeps it."""
    return Curve(
        train_loss=tuple(epoch.train_loss for epoch in history),
        val_loss=tuple(epoch.val_loss for epoch in history),
        val_accuracy=tuple(epoch.val_score for epoch in history),
        step_losses=() if step_losses is None else tuple(round(float(loss), 7) for loss in step_losses),
    )
