"""From scores to probabilities that can be believed: one number, chosen on val.

Distances, regression values and votes order the classes, but are no probabilities. One factor (or, for votes, one
addend) makes them so: the one with the lowest cross-entropy on val. It changes no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 24
# How sharp scores may become, in units of their own deviation: scores that are right everywhere would ask for more
# and more, and be infinitely wrong the first time they are not.
_SHARPEST = 100.0


def sharpness(scores: Tensor, labels: Tensor) -> float:
    """The factor that makes `scores` (N, C) the best logits for `labels` int64 (N,)."""
    deviation = float(scores.std()) or 1.0
    return lowest(
        lambda factor: float(F.cross_entropy(scores * factor, labels)), 0.01 / deviation, _SHARPEST / deviation
    )


def vote_smoothing(votes: Tensor, labels: Tensor) -> float:
    """What to add to every class's `votes` float32 (N, C), so that their shares are the best probabilities."""
    return lowest(lambda added: float(F.cross_entropy((votes + added).log(), labels)), 1e-3, 1e2)


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
