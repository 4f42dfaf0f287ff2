"""How good a head is: computed once over all outputs of a part, never per batch. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.calibration import sharpness
from featcache.heads.class_metrics import class_score, measure_classes, softmax
from featcache.heads.list_metrics import (
    best_thresholds,
    binary_cross_entropy,
    mean_average_precision,
    measure_lists,
    sigmoid,
)
from featcache.heads.metric_records import Metrics
from featcache.heads.number_metrics import mean_r2, measure_numbers, number_loss
from featcache.heads.records import Score
from featcache.rows.target import HeadTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a head gives for some rows, in the order of the cache.

    Attributes:
        outputs: float32 (N, C): logits for classes and lists, values in the targets' own units for numbers.
        targets: What is right: int64 (N,) for classes, int8 (N, C) for lists, float64 (N, C) for numbers.
        target: What the head is to say.
        scale: float64 (C,), for numbers: the unit in which the loss is measured, the deviations of the train values;
            None for the targets' own.
        loss: For numbers: "mse", "l1" or "huber".
    """

    outputs: NDArray[np.float32]
    targets: NDArray[Any]
    target: HeadTarget
    scale: NDArray[np.float64] | None = None
    loss: str = "mse"

    def score(self) -> Score:
        """The metric of the target's kind, and the mean loss."""
        outputs, targets = self.outputs, self.targets
        if self.target.kind == "classes":
            return class_score(outputs, targets)
        if self.target.kind == "lists":
            value, loss = mean_average_precision(outputs, targets), binary_cross_entropy(outputs, targets)
        else:
            loss = number_loss(outputs, targets, loss=self.loss, scale=self.scale)
            value = mean_r2(outputs, targets)
        return Score(value=value, loss=loss, metric=self.target.metric)


def readable(outputs: NDArray[np.float32], target: HeadTarget) -> NDArray[np.float32]:
    """What is shown and stored of outputs (N, C): probabilities for classes and lists, the values of numbers."""
    if target.kind == "classes":
        return softmax(outputs)
    return sigmoid(outputs) if target.kind == "lists" else outputs


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen on val and is used on every part.

    Attributes:
        temperature: For classes: what logits are divided by to be calibrated.
        thresholds: For lists: the probability that each class needs to be said.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


def tuned(val: Outcome) -> Tuning:
    """What val asks for."""
    if val.target.kind == "classes":
        return Tuning(temperature=1 / sharpness(val.outputs, val.targets))
    if val.target.kind == "lists":
        return Tuning(thresholds=best_thresholds(val.outputs, val.targets))
    return Tuning()


def measure(outcome: Outcome, tuning: Tuning, *, seed: int) -> Metrics:
    """All that is said of one part: a record of the target's kind. `seed`: the bootstrap's."""
    outputs, targets = outcome.outputs, outcome.targets
    if outcome.target.kind == "classes":
        return measure_classes(outputs, targets, temperature=tuning.temperature)
    if outcome.target.kind == "lists":
        return measure_lists(outputs, targets, thresholds=tuning.thresholds, seed=seed)
    return measure_numbers(outputs, targets, seed=seed)
