"""Finds images that are like no class: broken, empty, foreign or unusual ones.

The score is the Mahalanobis distance to the nearest class mean, with one covariance for all classes (Lee et al.,
NeurIPS 2018), on signed square roots of the features, scaled to length 1 (Mueller & Hein, ICML 2025). The covariance
is shrunk strongly towards a sphere, because it is estimated on the same images: outliers would enlarge it and so hide
themselves. docs/audit.md has the measurements on CIFAR-10 behind these choices.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.values import Rows, Values
from featcache.images.samples import UNLABELLED
from featcache.text import human_count

Distances = npt.NDArray[np.float64]

# Tukey's fence (1977): this many interquartile ranges above the upper quartile.
FENCE: Final = 1.5
# The share of the covariance that is replaced by a sphere.
SHRINKAGE: Final = 0.9
LEAST_IMAGES: Final = 50
_BLOCK: Final = 8192


def outliers(table: ImageTable, root_directions: Values) -> Section:
    """The section of outliers, the farthest first. `root_directions`: float32 (N, d), of all images."""
    if len(table) < LEAST_IMAGES:
        reason = f"too few: {human_count(len(table), 'image')}; it takes {LEAST_IMAGES}"
        return Section(kind="outlier", note="distance to the nearest class", withheld=reason)
    distances, nearest = class_distances(root_directions, table.labels)
    low, middle, high = np.quantile(distances, [0.25, 0.5, 0.75])
    fence = high + FENCE * (high - low)
    beyond = np.flatnonzero(distances > fence)
    findings = [
        Finding(
            kind="outlier",
            samples=table.samples(np.array([n])),
            score=float(1 - fence / distances[n]),
            reason=f"distance {distances[n]:.1f} from {_class_label(table, int(nearest[n]))}, "
            f"half of all images are within {middle:.1f}",
        )
        for n in beyond[np.argsort(-distances[beyond], kind="stable")]
    ]
    note = f"Mahalanobis distance to the nearest class; listed are images beyond {fence:.1f}, Tukey's fence"
    return Section(kind="outlier", findings=tuple(findings), note=note)


def _class_label(table: ImageTable, label: int) -> str:
    return "the unlabelled images" if label == UNLABELLED else table.classes[label]


def class_distances(features: Values, labels: Rows) -> tuple[Distances, Rows]:
    """The distance of each row (N, d) to the nearest class mean, and that class: float64 (N,), int64 (N,).

    Unlabelled rows form a class only if no row has a label.
    """
    known = labels >= 0 if (labels >= 0).any() else np.ones(len(labels), np.bool_)
    names = np.unique(labels[known])
    means = np.stack([_mean(features, np.flatnonzero(labels == name)) for name in names])
    whitening = _whitening(features, np.flatnonzero(known), means[np.searchsorted(names, labels[known])])
    centres = means @ whitening
    distances, nearest = np.empty(len(features)), np.empty(len(features), np.int64)
    for start in range(0, len(features), _BLOCK):
        white = features[start : start + _BLOCK] @ whitening
        squares = (white**2).sum(axis=1)[:, None] - 2 * white @ centres.T + (centres**2).sum(axis=1)
        nearest[start : start + len(white)] = names[squares.argmin(axis=1)]
        distances[start : start + len(white)] = np.sqrt(np.maximum(squares.min(axis=1), 0))
    return distances, nearest


def _mean(features: Values, rows: Rows) -> Distances:
    total = np.zeros(features.shape[1])
    for start in range(0, len(rows), _BLOCK):
        total += features[rows[start : start + _BLOCK]].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _whitening(features: Values, rows: Rows, centres: Distances) -> Distances:
    """(d, d) W with W W' the inverse of the shrunk covariance of `rows` around their centres (n, d)."""
    wide = features.shape[1]
    covariance = np.zeros((wide, wide))
    for start in range(0, len(rows), _BLOCK):
        around = features[rows[start : start + _BLOCK]] - centres[start : start + _BLOCK]
        covariance += around.T @ around
    covariance /= len(rows)
    sphere = max(float(np.trace(covariance)) / wide, 1e-12)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere * np.eye(wide)
    return np.linalg.inv(np.linalg.cholesky(shrunk)).T
