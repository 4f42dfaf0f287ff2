"""From scores to probabilities that can be believed: one number, chosen on val; and how far they can be believed.

Distances, regression values and votes order the classes, but are no probabilities. One factor (or, for votes, one
addend) makes them so: the one with the lowest cross-entropy on val. It changes no prediction.

Guo et al., "On Calibration of Modern Neural Networks" (2017): bins of confidence, their mean accuracy, and the
expected calibration error, which is the mean distance of the two, weighted by images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.heads.metric_records import Bin

BINS = 15
# Rows that are looked at together, as float64.
BLOCK_BYTES = 8 << 20
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 24
_NEWTON_STEPS = 60
_CLOSE = 1e-4
# How sharp scores may become, in units of their own deviation: scores that are right everywhere would ask for more
# and more, and be infinitely wrong the first time they are not.
_SHARPEST = 100.0


def sharpness(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The factor that makes scores the best logits on the same rows.

    Args:
        scores: (N, C), any floats.
        labels: (N,) the right classes.

    Returns:
        The factor with the lowest cross-entropy, between a hundredth and a hundred over the scores' deviation.
    """
    deviation = float(scores.std(dtype=np.float64)) or 1.0
    low, high = 0.01 / deviation, _SHARPEST / deviation
    # The cross-entropy is convex in the factor: its slope rises, and Newton's steps look for where it is 0. A step
    # that leads out of the bracket is replaced by halving it, on the scale of logarithms.
    factor = min(max(1.0, low), high)
    for _ in range(_NEWTON_STEPS):
        slope, bend = _slope(scores, labels, factor)
        low, high = (factor, high) if slope < 0 else (low, factor)
        if high / low < 1 + _CLOSE:
            break
        step = factor - slope / bend if bend > 0 else math.inf
        better = step if low < step < high else math.sqrt(low * high)
        if abs(better / factor - 1) < _CLOSE / 10:
            return better
        factor = better
    return math.sqrt(low * high)


def _slope(scores: NDArray[np.float32], labels: NDArray[np.int64], factor: float) -> tuple[float, float]:
    """The first and second derivative of the summed cross-entropy at a factor."""
    slope = bend = 0.0
    for part in row_blocks(*scores.shape):
        some = scores[part].astype(np.float64)
        some -= some.max(axis=1, keepdims=True)
        shares = np.exp(factor * some)
        shares /= shares.sum(axis=1, keepdims=True)
        mean = np.einsum("nc,nc->n", shares, some)
        slope += float((mean - some[np.arange(len(some)), labels[part]]).sum())
        bend += float((np.einsum("nc,nc,nc->n", shares, some, some) - mean**2).sum())
    return slope, bend


def vote_smoothing(votes: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """What to add to each of the `votes` (N, C), so that their shares are the best probabilities for `labels` (N,)."""
    total = votes.sum(axis=1, dtype=np.float64)
    own = votes[np.arange(len(votes)), labels].astype(np.float64)
    classes = votes.shape[1]
    return lowest(lambda added: float((np.log(total + classes * added) - np.log(own + added)).mean()), 1e-3, 1e2)


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where `function`, which has one valley, is lowest between two positive numbers; within a few per cent."""
    left, right = math.log(low), math.log(high)
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    values = [function(math.exp(point)) for point in inner]
    for _ in range(_STEPS):
        if values[0] < values[1]:
            right, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = right - _GOLDEN * (right - left)
            values[0] = function(math.exp(inner[0]))
        else:
            left, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = left + _GOLDEN * (right - left)
            values[1] = function(math.exp(inner[1]))
    return math.exp((left + right) / 2)


# --- how far confidence can be believed --------------------------------------------------------------------


def confidence_bins(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """The bins that hold images, by confidence.

    Args:
        confidence: (N,) the largest probability of each image, a fraction.
        right: (N,) whether the class that has it is the right one.

    Returns:
        The bins (low, high]; the last one holds a confidence of exactly 1 (or a rounding above), the first one of 0.
    """
    sure = confidence.astype(np.float64)
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, BINS - 1)
    images = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, weights=values, minlength=BINS) for values in (sure, right)]
    return tuple(
        Bin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            images=int(images[number]),
            confidence=float(sums[0][number] / images[number]),
            accuracy=float(sums[1][number] / images[number]),
        )
        for number in np.flatnonzero(images).tolist()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error of some bins, a fraction; 0 where there are none."""
    images = sum(one.images for one in bins)
    return sum(abs(one.accuracy - one.confidence) * one.images for one in bins) / max(1, images)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """All rows, in blocks that take a few megabytes as float64."""
    step = max(1, BLOCK_BYTES // (8 * max(1, columns)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
