"""How far confidence can be believed: how often a head is right among the images it is so sure about.

Guo et al., "On Calibration of Modern Neural Networks" (2017): bins of confidence, their mean accuracy, and the
expected calibration error, which is the mean distance of the two, weighted by images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.heads.records import Predictions

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose confidence lies in (low, high]: their mean `confidence` and `accuracy`, fractions."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(said: Predictions, *, temperature: float = 1.0) -> tuple[Bin, ...]:
    """The bins that hold images, by confidence. `temperature`: what the logits are divided by first."""
    shares = tempered(said.probabilities, temperature)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == said.labels
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    return tuple(
        Bin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for number in range(BINS)
        if (inside := place == number).any()
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """The expected calibration error of some bins, a fraction."""
    images = sum(one.images for one in bins)
    return sum(abs(one.accuracy - one.confidence) * one.images for one in bins) / images


def tempered(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities (N, C) as they were, had the logits been divided by `temperature`: float64 (N, C)."""
    # A probability is the exponential of a logit, up to a factor that all classes share.
    powers = np.clip(probabilities.astype(np.float64), 1e-30, None) ** (1 / temperature)
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
