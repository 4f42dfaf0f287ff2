"""Standardise targets of numbers, so that one learning rate suits targets of any unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetScale:
    """Mean and population standard deviation of each column of the train targets.

    Attributes:
        mean: float64 (C,).
        deviation: float64 (C,); 1 for a constant column.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, targets: NDArray[Any]) -> Self:
        """The scale of numbers (N, C)."""
        values = np.asarray(targets, np.float64)
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        return cls(mean=mean, deviation=np.where(deviation <= 1e-12 * np.abs(mean), 1.0, deviation))

    def apply(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Standardise numbers (N, C)."""
        return (np.asarray(targets, np.float64) - self.mean) / self.deviation

    def fold(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The layer (C, D), (C,) that gives plain numbers and equals one that gives standardised numbers."""
        return weight * self.deviation[:, None], bias * self.deviation + self.mean
