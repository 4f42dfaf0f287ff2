"""Calibrate scores to probabilities with one number chosen on val, and measure the calibration error.

Distances, regression values and votes order the classes, but are not probabilities. One factor (or, for votes, one
addend) turns them into logits: the one with the lowest cross-entropy on val. It changes no predicted class.

Guo et al., "On Calibration of Modern Neural Networks" (2017): images are grouped into bins of confidence. The expected
calibration error is the mean distance of a bin's accuracy from its mean confidence, weighted by images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.heads.metric_records import Bin

BINS = 15
# Size of a block of rows as float64.
BLOCK_BYTES = 8 << 20
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 24
_NEWTON_STEPS = 60
_CLOSE = 1e-4
# The largest factor, in units of one over the scores' deviation. Where every prediction is right, the cross-entropy
# falls with any larger factor, and one wrong prediction would then have a huge loss.
_LARGEST_FACTOR = 100.0


def best_factor(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The factor by which scores become the logits with the lowest cross-entropy (an inverse temperature).

    Args:
        scores: (N, C), any floats.
        labels: (N,) the right classes.

    Returns:
        A factor between 0.01 and 100, divided by the standard deviation of the scores.
    """
    deviation = float(scores.std(dtype=np.float64)) or 1.0
    low, high = 0.01 / deviation, _LARGEST_FACTOR / deviation
    # The cross-entropy is convex in the factor, so its slope rises, and Newton's method finds where the slope is 0. A
    # step that leaves the bracket is replaced by bisection on a logarithmic scale.
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
    """The number to add to each of the `votes` (N, C) so that their shares have the lowest cross-entropy on `labels`.

    `labels`: int64 (N,).
    """
    total = votes.sum(axis=1, dtype=np.float64)
    own = votes[np.arange(len(votes)), labels].astype(np.float64)
    classes = votes.shape[1]
    return minimise(lambda added: float((np.log(total + classes * added) - np.log(own + added)).mean()), 1e-3, 1e2)


def minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a unimodal `function` is lowest between two positive numbers, to a few per cent; golden-section search."""
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


# --- calibration error -------------------------------------------------------------------------------------


def confidence_bins(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Group images into bins of confidence; bins without images are left out.

    Args:
        confidence: (N,) the largest probability of each image, a fraction.
        right: (N,) whether the class with that probability is right.

    Returns:
        The bins (low, high]; the first one also has a confidence of 0, the last one also those rounded above 1.
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
    """The expected calibration error of some bins, a fraction; 0 if there are no bins."""
    images = sum(one.images for one in bins)
    return sum(abs(one.accuracy - one.confidence) * one.images for one in bins) / max(1, images)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of `rows` rows, each of a few megabytes as float64."""
    step = max(1, BLOCK_BYTES // (8 * max(1, columns)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
