"""The small records that a training hands out and a run keeps. No torch here: the shelf of runs is read without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
class Metrics:
    """How good a head is on one part, in more words than a Score. Everything but counts is a fraction from 0 to 1.

    `accuracy_interval`: 95 %, by bootstrap over the images. `top5`: None with 5 classes or fewer.
    `balanced_accuracy`: the mean recall of the classes there are. `macro_f1`: the mean F1 of the classes that are
    there or were said. `calibration_error`: expected, over 15 bins of confidence; `temperature`: what the logits have
    to be divided by to be calibrated on val, and `scaled_calibration_error` what is left of the error then.
    `recall`, `precision`, `images`: a value a class, in their order; None where there is nothing to divide by.
    `confusion`: a row a class, a column for what was said; None with more than 200 classes.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float
    temperature: float
    scaled_calibration_error: float
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    images: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metrics:
        """What `to_json` described. Raises TypeError or AttributeError for anything else."""
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        rows = values.get("confusion")
        confusion = None if rows is None else tuple(tuple(row) for row in rows)
        return cls(**{**values, **tuples, "confusion": confusion})


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch, counted from 1. It is what a progress callback gets and what the history keeps.

    `train_loss`: mean loss of the batches as they were trained on, without any penalty: cross-entropy, with label
    smoothing and class weights where they were asked for; nan where there is none (knn).
    `seconds`: what this epoch took, val included.
    `candidate`: a head that is solved has no epochs. Each value it tried takes the place of one, and stands here
    in words (`C=0.1`).
    `lr`: the learning rate of the epoch; 0 where nothing is trained by steps.
    """

    epoch: int
    max_epochs: int
    train_loss: float
    val_loss: float
    val_score: float
    seconds: float
    candidate: str = ""
    lr: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a head says of one part, a row an image.

    `ids`: sample ids; `labels`: int64 (N,); `probabilities`: float32 (N, C), in the order of the classes.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


Progress = Callable[[EpochRecord], None]
