"""Features of mean 0 and deviation 1, as train has them, and how a head is stored so that nobody has to know.

A head on standardised features, h((x - mean) / deviation), is the same as another one on the features as they are:
its first linear layer has W / deviation for W, and b - W (mean / deviation) for b. That one is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# What a block may take in float64, while sums are taken.
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardisation:
    """`mean`, `deviation`: float64 (D,), holding float32 values. A constant feature has the deviation 1."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardisation:
        """That of float32 (N, D): population deviation, summed in float64."""
        mean = sum((block.sum(dim=0) for block in blocks(features)), _zeros(features)) / len(features)
        squares = sum(((block - mean).square_().sum(dim=0) for block in blocks(features)), _zeros(features))
        deviation = (squares / len(features)).sqrt()
        # A constant that float16 cannot hold exactly is still a constant.
        constant = deviation <= 1e-6 * mean.abs()
        deviation[constant | (deviation == 0)] = 1.0
        return cls(mean=mean.float().double(), deviation=deviation.float().double())

    def apply_(self, features: Tensor) -> Tensor:
        """Standardise float32 (N, D) where it lies."""
        return features.sub_(self.mean.float()).div_(self.deviation.float())

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The layer (O, D), (O,) on features as they are, for one on standardised features; float64."""
        plain = weight.double() / self.deviation
        return plain, bias.double() - plain @ self.mean


def blocks(features: Tensor) -> Iterator[Tensor]:
    """The rows of (N, D) as float64, a block at a time."""
    rows = max(1, BLOCK_BYTES // (8 * features.shape[1]))
    for start in range(0, len(features), rows):
        yield features[start : start + rows].double()


def _zeros(features: Tensor) -> Tensor:
    return torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
