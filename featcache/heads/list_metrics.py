"""Metrics of multi-label classification, where an image can have several classes. Uses NumPy only.

Outputs are logits (N, C), targets int8 (N, C) of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.bootstrap import Counts, draw_counts, number_of_draws, percentile_interval
from featcache.heads.calibration import row_blocks
from featcache.heads.class_metrics import macro_f1, shares
from featcache.heads.metric_records import ListMetrics

# The threshold of a class that no image of val has.
MIDDLE = 0.5

Outputs = NDArray[np.floating]
Marks = NDArray[np.int8]


def measure_lists(outputs: Outputs, targets: Marks, *, thresholds: Sequence[float], seed: int) -> ListMetrics:
    """All metrics of one part.

    Args:
        outputs: (N, C) logits.
        targets: (N, C), 1 where an image has the class.
        thresholds: Of each class, the probability from which on it is predicted; see `best_thresholds`.
        seed: Seed of the bootstrap.
    """
    ranked = _rank_classes(outputs, targets)
    predicted, there = sigmoid(outputs) >= np.asarray(thresholds), targets > 0
    hits, have, predictions = ((predicted & there).sum(axis=0), there.sum(axis=0), predicted.sum(axis=0))
    everything = int(have.sum() + predictions.sum())
    each = average_precisions(outputs, targets)
    return ListMetrics(
        map=mean_average_precision(outputs, targets),
        map_interval=percentile_interval(bootstrap_map(ranked, seed=seed)),
        micro_f1=2 * int(hits.sum()) / everything if everything else 0.0,
        macro_f1=macro_f1(hits, have, predictions),
        exact_match=float((predicted == there).all(axis=1).mean()),
        average_precision=tuple(None if np.isnan(one) else float(one) for one in each),
        recall=shares(hits, have),
        precision=shares(hits, predictions),
        images=tuple(have.tolist()),
        thresholds=tuple(map(float, thresholds)),
    )


def sigmoid(outputs: Outputs) -> NDArray[np.float32]:
    """Logits -> probabilities, float32, without overflow."""
    small = np.exp(-np.abs(outputs, dtype=np.float32))
    return np.where(outputs >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32, copy=False)


def binary_cross_entropy(outputs: Outputs, targets: Marks) -> float:
    """The mean binary cross-entropy over all images and classes, natural logarithm."""
    total = 0.0
    for part in row_blocks(*outputs.shape):
        some = outputs[part]
        losses = np.maximum(some, 0) - some * targets[part] + np.log1p(np.exp(-np.abs(some)))
        total += float(losses.sum(dtype=np.float64))
    return total / outputs.size


def mean_average_precision(outputs: Outputs, targets: Marks) -> float:
    """The mean of the average precisions of the classes that at least one image has; 0 if there are none."""
    each = average_precisions(outputs, targets)
    known = each[~np.isnan(each)]
    return float(known.mean()) if len(known) else 0.0


def average_precisions(outputs: Outputs, targets: Marks) -> NDArray[np.float64]:
    """The average precision of each class, (C,); NaN for a class that no image has.

    It is the mean of the precision at each different output, weighted by the recall that this output adds.
    """
    once = np.ones((1, len(outputs)))
    return np.array([one.average_precision(once)[0] for one in _rank_classes(outputs, targets)])


def best_thresholds(outputs: Outputs, targets: Marks) -> tuple[float, ...]:
    """For each class, the probability from which on it is predicted: the one with the best F1, of equals the highest.

    It is the middle between two probabilities that occur, so that rounding changes no prediction. A class that no image
    has gets 0.5.
    """
    probabilities = sigmoid(outputs)
    return tuple(_best_threshold(column, marks > 0) for column, marks in zip(probabilities.T, targets.T, strict=True))


def _best_threshold(probabilities: NDArray[np.float32], there: NDArray[np.bool_]) -> float:
    if not there.any():
        return MIDDLE
    order = np.argsort(-probabilities, kind="stable")
    values, marks = probabilities[order].astype(np.float64), there[order]
    ends = _group_ends(values)
    hits = np.cumsum(marks)[ends]
    best = int(np.argmax(2 * hits / (ends + 1 + int(marks.sum()))))
    below = values[ends[best + 1]] if best + 1 < len(ends) else 0.0
    return float((values[ends[best]] + below) / 2)


# --- average precision of weighted images ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedClass:
    """The images, sorted by their outputs for one class, from the highest to the lowest.

    Attributes:
        order: (N,) the images.
        marks: (N,) whether each has the class, in that order.
        ends: The last place of each run of equal outputs; images with equal outputs have the same rank.
    """

    order: NDArray[np.int64]
    marks: NDArray[np.bool_]
    ends: NDArray[np.int64]

    def average_precision(self, counts: Counts) -> NDArray[np.float64]:
        """The average precision for images weighted by `counts`, (draws, N) -> (draws,); NaN without the class."""
        weights = counts[:, self.order]
        predictions = np.cumsum(weights, axis=1)[:, self.ends]
        weights *= self.marks
        hits = np.cumsum(weights, axis=1)[:, self.ends]
        gained = np.diff(hits, axis=1, prepend=0)
        gained *= hits
        np.divide(gained, predictions, out=gained, where=predictions > 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(gained.sum(axis=1) / hits[:, -1])


def _rank_classes(outputs: Outputs, targets: Marks) -> list[RankedClass]:
    ranked = []
    for column, marks in zip(outputs.T, targets.T, strict=True):
        order = np.argsort(-column, kind="stable")
        ranked.append(RankedClass(order=order, marks=marks[order] > 0, ends=_group_ends(column[order])))
    return ranked


def _group_ends(ordered: NDArray[np.floating]) -> NDArray[np.int64]:
    """The last place of each run of equal values."""
    return np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)


def bootstrap_map(ranked: Sequence[RankedClass], *, seed: int) -> NDArray[np.float64]:
    """Mean average precision of each bootstrap draw of the images, (draws,)."""
    rows = len(ranked[0].order)
    drawn = []
    for counts in draw_counts(rows, number_of_draws(rows, len(ranked)), seed=seed):
        each = np.stack([one.average_precision(counts) for one in ranked])
        known = ~np.isnan(each)
        drawn.append(np.where(known, each, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0)))
    return np.concatenate(drawn)


def map_draws(outputs: Outputs, targets: Marks, *, seed: int) -> NDArray[np.float64]:
    """The same, from outputs and targets: two heads with the same rows and `seed` have the same draws."""
    return bootstrap_map(_rank_classes(outputs, targets), seed=seed)
