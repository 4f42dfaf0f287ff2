"""The outputs of a trained head and its training curve, by which two trainings are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.benchmark.records import Curve
from featcache.benchmark.training import Trained
from featcache.heads.records import EpochRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadOutputs:
    """A trained head's logits on val and test, float32 (N, C), with labels int64 (N,) and its training curve."""

    curve: Curve
    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]


def head_outputs(trained: Trained) -> HeadOutputs:
    """The outputs of a training's head."""
    outcomes = {"val": trained.val} | ({} if trained.test is None else {"test": trained.test})
    return HeadOutputs(
        curve=curve_of(trained.history, trained.step_losses),
        logits={part: outcome.outputs for part, outcome in outcomes.items()},
        labels={part: outcome.targets for part, outcome in outcomes.items()},
    )


def curve_of(history: Sequence[EpochRecord], step_losses: NDArray[np.float32] | None = None) -> Curve:
    """A training's history as a Curve."""
    return Curve(
        train_loss=tuple(epoch.train_loss for epoch in history),
        val_loss=tuple(epoch.val_loss for epoch in history),
        val_accuracy=tuple(epoch.val_score for epoch in history),
        step_losses=() if step_losses is None else tuple(round(float(loss), 7) for loss in step_losses),
    )
