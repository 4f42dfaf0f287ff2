"""Images that are like no class: broken, empty or foreign ones, or merely odd ones.

How far an image is from its nearest class is measured by Mahalanobis distance, with one covariance for all classes
(Lee et al., NeurIPS 2018), on features of length 1 (Mueller & Hein, ICML 2025) whose roots were taken first. Most of
the covariance is replaced by a sphere: it is taken from the very images that are judged, and foreign ones hide in it.
docs/audit.md has the figures on CIFAR-10 that decided.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.analysis.values import Values
from featcache.images.samples import UNLABELLED

Distances = npt.NDArray[np.float64]

# Tukey's fence (1977): so many interquartile ranges above the upper quartile.
FENCE: Final = 1.5
# Of the covariance, what is replaced by a sphere.
SHRINKAGE: Final = 0.9
LEAST_IMAGES: Final = 50
_BLOCK: Final = 8192


def outliers(table: ImageTable, compositions: Values) -> Section:
    """The section of outliers, the farthest first."""
    if len(table) < LEAST_IMAGES:
        return Section(kind="outlier", findings=(), note=f"not looked for: {len(table)} images are too few")
    distances, nearest = class_distances(compositions, table.labels)
    low, middle, high = np.quantile(distances, [0.25, 0.5, 0.75])
    fence = high + FENCE * (high - low)
    beyond = np.flatnonzero(distances > fence)
    findings = [
        Finding(
            kind="outlier",
            samples=table.samples(np.array([n])),
            score=float(1 - fence / distances[n]),
            reason=f"distance {distances[n]:.1f} from {_named(table, int(nearest[n]))}, "
            f"half of all images are within {middle:.1f}",
        )
        for n in beyond[np.argsort(-distances[beyond], kind="stable")]
    ]
    note = f"Mahalanobis distance to the nearest class; named are images beyond {fence:.1f}, Tukey's fence"
    return Section(kind="outlier", findings=tuple(findings), note=note)


def _named(table: ImageTable, label: int) -> str:
    return "the unlabelled ones" if label == UNLABELLED else table.classes[label]


def class_distances(features: Values, labels: Rows) -> tuple[Distances, Rows]:
    """How far each row (N, d) is from the nearest class mean, and which class that is: float64 (N,), int64 (N,).

    Unlabelled rows count as a class only where nothing is labelled.
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
