"""Metrics of classification, with NumPy only: outputs are logits (N, C), labels int64 (N,)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.calibration import calibration_error, confidence_bins, row_blocks
from featcache.heads.metric_records import ClassMetrics, Interval
from featcache.heads.records import Score

LARGEST_CONFUSION = 200
TOP = 5
# 95 % of the standard normal distribution is between -_Z and _Z.
_Z = 1.959963984540054

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def wilson_interval(right: float, images: int) -> Interval:
    """Wilson's 95 % confidence interval of a share; it is not empty even for 10 right of 10.

    Args:
        right: Number of right images; a mean of several counts may be fractional.
        images: Number of images; with 0 the interval is (0, 1).
    """
    if not images:
        return 0.0, 1.0
    share, z2 = right / images, _Z**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / images + z2 / (4 * images))
    return (0.0 if right <= 0 else middle - half), (1.0 if right >= images else middle + half)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Of each image: the predicted class, its probability without and with a temperature, whether top 5 is right."""

    predicted: Labels
    confidence: NDArray[np.float64]
    scaled: NDArray[np.float64]
    in_top: NDArray[np.bool_]


def measure_classes(outputs: Logits, labels: Labels, *, temperature: float) -> ClassMetrics:
    """All metrics of one part. `temperature`: the number to divide logits by, chosen on val."""
    classes = outputs.shape[1]
    rows = _evaluate_rows(outputs, labels, temperature)
    right = rows.predicted == labels
    hits, there, predicted = (np.bincount(each, minlength=classes) for each in (labels[right], labels, rows.predicted))
    recall = shares(hits, there)
    present = [value for value in recall if value is not None]
    bins, scaled_bins = confidence_bins(rows.confidence, right), confidence_bins(rows.scaled, right)
    return ClassMetrics(
        accuracy=int(right.sum()) / len(labels),
        accuracy_interval=wilson_interval(int(right.sum()), len(labels)),
        top5=int(rows.in_top.sum()) / len(labels) if classes > TOP else None,
        balanced_accuracy=sum(present) / len(present),
        macro_f1=macro_f1(hits, there, predicted),
        calibration_error=calibration_error(bins),
        temperature=temperature,
        scaled_calibration_error=calibration_error(scaled_bins),
        recall=recall,
        precision=shares(hits, predicted),
        images=tuple(there.tolist()),
        confusion=_confusion(labels, rows.predicted, classes) if classes <= LARGEST_CONFUSION else None,
        bins=bins,
        scaled_bins=scaled_bins,
    )


def class_score(outputs: Logits, labels: Labels) -> Score:
    """Accuracy and mean cross-entropy."""
    right = int((outputs.argmax(axis=1) == labels).sum())
    return Score(value=right / len(labels), loss=cross_entropy(outputs, labels))


def cross_entropy(outputs: Logits, labels: Labels) -> float:
    """The mean cross-entropy, natural logarithm."""
    total = 0.0
    for part in row_blocks(*outputs.shape):
        some = outputs[part] - outputs[part].max(axis=1, keepdims=True)
        own = some[np.arange(len(some)), labels[part]]
        total += float((np.log(np.exp(some).sum(axis=1, dtype=np.float64)) - own).sum())
    return total / len(labels)


def softmax(outputs: Logits) -> Logits:
    """Logits -> probabilities, float32 (N, C)."""
    shares: Logits = outputs - outputs.max(axis=1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def macro_f1(hits: Labels, there: Labels, predicted: Labels) -> float:
    """The mean F1 of the classes that are present or predicted, from counts (C,); 0 if there are none."""
    wholes = there + predicted
    known = wholes > 0
    return float((2 * hits[known] / wholes[known]).mean()) if known.any() else 0.0


def shares(parts: Labels, wholes: Labels) -> tuple[float | None, ...]:
    """Each part divided by its whole; None where the whole is 0."""
    return tuple(part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True))


def _evaluate_rows(outputs: Logits, labels: Labels, temperature: float) -> _Rows:
    count = len(labels)
    confidence, scaled = np.empty(count), np.empty(count)
    predicted, in_top = np.empty(count, np.int64), np.empty(count, np.bool_)
    for part in row_blocks(*outputs.shape):
        some = outputs[part].astype(np.float64)
        some -= some.max(axis=1, keepdims=True)
        own = some[np.arange(len(some)), labels[part]]
        predicted[part] = some.argmax(axis=1)
        # Classes with the same output as the right one are counted before it: a tie is not a right prediction.
        in_top[part] = (some >= own[:, None]).sum(axis=1) <= TOP
        confidence[part] = 1 / np.exp(some).sum(axis=1)
        scaled[part] = 1 / np.exp(some / temperature).sum(axis=1)
    return _Rows(predicted=predicted, confidence=confidence, scaled=scaled, in_top=in_top)


def _confusion(labels: Labels, predicted: Labels, classes: int) -> tuple[tuple[int, ...], ...]:
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return tuple(map(tuple, counts.tolist()))
