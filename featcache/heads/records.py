"""The small records that a training hands out and a run keeps. No torch here: the shelf of runs is read without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Score:
    """`accuracy`: a fraction from 0 to 1; `loss`: mean cross-entropy, natural logarithm."""

    accuracy: float
    loss: float

    def to_json(self) -> dict[str, float]:
        """Both values by name."""
        return {"accuracy": self.accuracy, "loss": self.loss}


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch, counted from 1. It is what a progress callback gets and what the history keeps.

    `train_loss`: mean cross-entropy of the batches as they were trained on, without any penalty.
    `seconds`: what this epoch took, val included.
    """

    epoch: int
    max_epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a head says of one part, a row an image.

    `ids`: sample ids; `labels`: int64 (N,); `probabilities`: float32 (N, C), in the order of the classes.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


Progress = Callable[[EpochRecord], None]
Report = Callable[[str], None]
