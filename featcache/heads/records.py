"""Records that training returns and a run stores. Does not import torch, so that runs can be listed without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.display import Shown
from featcache.rows.target import TargetKind


@dataclass(frozen=True, kw_only=True)
class Score:
    """The quality of a head in two numbers: higher `value` and lower `loss` are better.

    Attributes:
        value: The metric that `metric` names.
        loss: The mean loss: cross-entropy for one class per image, binary cross-entropy over all classes for several,
            the training loss in deviations of the train values for numbers. Natural logarithms.
        metric: "accuracy" (a fraction from 0 to 1), "map" (mean average precision) or "r2".
    """

    value: float
    loss: float
    metric: str = "accuracy"

    @property
    def accuracy(self) -> float:
        """`value`, if it is an accuracy. Raises AttributeError if it is another metric."""
        if self.metric != "accuracy":
            raise AttributeError(f"this score is a {self.metric}, not an accuracy: use .value")
        return self.value

    def to_json(self) -> dict[str, float]:
        """The metric and the loss, by name."""
        return {self.metric: self.value, "loss": self.loss}

    @classmethod
    def from_json(cls, values: Mapping[str, float]) -> Score:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        (metric,) = set(values) - {"loss"}
        return cls(value=values[metric], loss=values["loss"], metric=metric)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The result of one epoch; progress callbacks get it, and the history of a run is a list of them.

    A head that a solver computes has no epochs: there is one record for each candidate value.

    Attributes:
        epoch: Number of the epoch, counted from 1.
        max_epochs: The largest possible number of epochs.
        train_loss: Mean loss of the train batches, with label smoothing and class weights but without penalties; nan
            where there is none (knn).
        val_loss, val_score: Loss and metric on val.
        seconds: Time of this epoch, including val.
        candidate: For solved heads, the value as text (`C=0.1`).
        rate: Learning rate of the epoch; 0 for solved heads.
    """

    epoch: int
    max_epochs: int
    train_loss: float
    val_loss: float
    val_score: float
    seconds: float
    candidate: str = ""
    rate: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predictions(Shown):
    """Predictions of a head for one part (train, val or test), one row per image.

    Attributes:
        ids: Sample ids.
        targets: The right targets: int64 (N,) for classes, else (N, C); see rows/target.py.
        outputs: float32 (N, C): probabilities for classes and lists, values in the target's units for numbers.
        kind: Kind of the targets.
    """

    ids: tuple[str, ...]
    targets: NDArray[Any]
    outputs: NDArray[np.float32]
    kind: TargetKind = "classes"


Progress = Callable[[EpochRecord], None]
