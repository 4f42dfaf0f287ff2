"""Heads that were solved, as NumPy objects: what they give for features, and the tensors a run stores of them.

No torch: a run whose head was solved predicts without it. As a torch module the same tensors are
`heads.stored.head_module`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.heads.metrics import Outcome
from featcache.rows.features import FeatureRows
from featcache.rows.target import HeadTarget

Tensors = Mapping[str, NDArray[Any]]


class SolvedHead(ABC):
    """A head that was solved. It does not change."""

    @abstractmethod
    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the head gives: float32 (n, D) -> float32 (n, C), logits, or numbers in the target's own units."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a run stores of it, by name."""

    @property
    @abstractmethod
    def learned(self) -> int:
        """How many numbers were learned; 0 for a head that only remembers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead(SolvedHead):
    """A linear layer on features as they are: `weight` float32 (C, D), `bias` float32 (C,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, tensors: Tensors) -> Self:
        """That of stored tensors."""
        return cls(weight=tensors["output.weight"], bias=tensors["output.bias"])

    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs = features @ self.weight.T
        outputs += self.bias
        return outputs

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Named as those of the head `linear` are."""
        return {"output.weight": self.weight, "output.bias": self.bias}

    @property
    def learned(self) -> int:
        return self.weight.size + self.bias.size


def outcome_of(
    head: SolvedHead, rows: FeatureRows, target: HeadTarget, *, scale: NDArray[np.float64] | None = None
) -> Outcome:
    """What a head gives for all rows. `scale`: as Outcome has it. Raises what `FeatureRows.read` raises."""
    outputs = [head.outputs(block) for block in rows.blocks()]
    return Outcome(outputs=np.concatenate(outputs), targets=rows.targets, target=target, scale=scale)
