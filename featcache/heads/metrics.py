"""Metrics of a head, computed once over all outputs of a part, never per batch. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.heads.calibration import best_factor
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
    """The outputs of a head for some rows, in the order of the cache, and their targets.

    Attributes:
        outputs: float32 (N, C): logits for classes and lists, values in the targets' own units for numbers.
        targets: int64 (N,) for classes, int8 (N, C) for lists, float64 (N, C) for numbers.
        target: The target of the head.
        scale: For numbers, float64 (C,): the units in which the loss is measured, which are the deviations of the train
            values; None for the targets' own units.
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


def to_predictions(outputs: NDArray[np.float32], target: HeadTarget) -> NDArray[np.float32]:
    """Convert outputs (N, C) to the predictions that are shown and stored: probabilities, or the numbers unchanged."""
    if target.kind == "classes":
        return softmax(outputs)
    return sigmoid(outputs) if target.kind == "lists" else outputs


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Parameters of metrics that are chosen on val and used on every part.

    Attributes:
        temperature: For classes: the number to divide logits by to calibrate them.
        thresholds: For lists: for each class, the probability from which on it is predicted.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


def tune_on_val(val: Outcome) -> Tuning:
    """Choose the temperature or the thresholds on val."""
    if val.target.kind == "classes":
        return Tuning(temperature=1 / best_factor(val.outputs, val.targets))
    if val.target.kind == "lists":
        return Tuning(thresholds=best_thresholds(val.outputs, val.targets))
    return Tuning()


def measure(outcome: Outcome, tuning: Tuning, *, seed: int) -> Metrics:
    """All metrics of one part: a record of the target's kind. `seed`: seed of the bootstrap."""
    outputs, targets = outcome.outputs, outcome.targets
    if outcome.target.kind == "classes":
        return measure_classes(outputs, targets, temperature=tuning.temperature)
    if outcome.target.kind == "lists":
        return measure_lists(outputs, targets, thresholds=tuning.thresholds, seed=seed)
    return measure_numbers(outputs, targets, seed=seed)
