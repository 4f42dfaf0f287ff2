"""Heads computed by a solver, as NumPy objects: their outputs, and the tensors that a run stores.

This module does not import torch, so such a head predicts without it. `heads.stored.build_head_module` makes a torch
module from the same tensors.
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
    """A head that was computed by a solver. It is immutable."""

    @abstractmethod
    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs: float32 (n, D) -> float32 (n, C), logits, or numbers in the target's own units."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The tensors that a run stores, by name."""

    @property
    @abstractmethod
    def learned(self) -> int:
        """Number of learned parameters; 0 for a head that only holds the train rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead(SolvedHead):
    """A linear layer on plain features: `weight` float32 (C, D), `bias` float32 (C,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, tensors: Tensors) -> Self:
        """The head from its stored tensors."""
        return cls(weight=tensors["output.weight"], bias=tensors["output.bias"])

    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs = features @ self.weight.T
        outputs += self.bias
        return outputs

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Weight and bias, with the names of the head `linear`."""
        return {"output.weight": self.weight, "output.bias": self.bias}

    @property
    def learned(self) -> int:
        return self.weight.size + self.bias.size


@dataclass(frozen=True, kw_only=True, eq=False)
class CosineHead(LinearHead):
    """A linear layer on features of length 1: with rows of one length as weight, scaled cosines."""

    def outputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        # As torch.nn.functional.normalize, so that zeros stay zeros.
        return super().outputs(features / np.maximum(lengths, np.float32(1e-12)))

    @property
    def learned(self) -> int:
        return 0


def outcome_of(
    head: SolvedHead, rows: FeatureRows, target: HeadTarget, *, scale: NDArray[np.float64] | None = None
) -> Outcome:
    """The outputs of a head for all rows. `scale`: see Outcome. Raises what `FeatureRows.read` raises."""
    outputs = [head.outputs(block) for block in rows.blocks()]
    return Outcome(outputs=np.concatenate(outputs), targets=rows.targets, target=target, scale=scale)
