"""The small records that a training hands out and a run keeps. No torch here: the shelf of runs is read without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.rows.target import TargetKind


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good a head is, in two numbers: the more of `value` and the less of `loss`, the better.

    Attributes:
        value: The metric of the target's kind; see `metric`.
        loss: The mean loss: cross-entropy for classes, binary cross-entropy over all classes for several, the loss
            that was trained on for numbers, in deviations of the train values. Natural logarithms.
        metric: What `value` is: "accuracy" (a fraction from 0 to 1), "map" (mean average precision) or "r2".
    """

    value: float
    loss: float
    metric: str = "accuracy"

    @property
    def accuracy(self) -> float:
        """`value`, where it is one. Raises AttributeError where it is another metric."""
        if self.metric != "accuracy":
            raise AttributeError(f"this score is a {self.metric}, not an accuracy: use .value")
        return self.value

    def to_json(self) -> dict[str, float]:
        """Both values by name."""
        return {self.metric: self.value, "loss": self.loss}

    @classmethod
    def from_json(cls, values: Mapping[str, float]) -> Score:
        """What `to_json` described. Raises KeyError, TypeError or ValueError for anything else."""
        (metric,) = set(values) - {"loss"}
        return cls(value=values[metric], loss=values["loss"], metric=metric)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch, counted from 1. It is what a progress callback gets and what the history keeps.

    `train_loss`: mean loss of the batches as they were trained on, without any penalty: cross-entropy, with label
    smoothing and class weights where they were asked for; nan where there is none (knn).
    `seconds`: what this epoch took, val included.
    `candidate`: a head that is solved has no epochs. Each value it tried takes the place of one, and stands here
    in words (`C=0.1`).
    `rate`: the learning rate of the epoch; 0 where nothing is trained by steps.
    """

    epoch: int
    max_epochs: int
    train_loss: float
    val_loss: float
    val_score: float
    seconds: float
    candidate: str = ""
    rate: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a head says of one part, a row an image.

    Attributes:
        ids: Sample ids.
        targets: What is right, as rows/target.py has it for the kind: int64 (N,) for classes, else (N, C).
        outputs: float32 (N, C): probabilities for classes and lists, values in the target's units for numbers.
        kind: Of the targets.
    """

    ids: tuple[str, ...]
    targets: NDArray[Any]
    outputs: NDArray[np.float32]
    kind: TargetKind = "classes"


Progress = Callable[[EpochRecord], None]
