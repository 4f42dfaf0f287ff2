"""Random changes in a training step: Gaussian noise, mixup and dropout.

All random numbers are a pure function of the seed of the rows' order, the epoch and the step. So no state is needed
between steps, and a head gets the same numbers whether it is trained alone or together with others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featcache.rows.devices import seed_generators


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """The kinds of random changes in a step, and their strengths.

    Attributes:
        dropout: The probability that a value after a hidden layer is set to 0.
        mixup: Alpha of mixup: the share of the other row is from Beta(alpha, alpha); 0 for none.
        noise: Standard deviation of Gaussian noise on the features; 0 for none.
    """

    dropout: float = 0.0
    mixup: float = 0.0
    noise: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.dropout or self.mixup or self.noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """The second rows of a mixup batch.

    Attributes:
        partners: The targets of the second rows: int64 (G, B) or float32 (G, B, C).
        shares: The share of the first rows, one number per group: float32 (G,).
    """

    partners: Tensor
    shares: Tensor


class StepRandom:
    """The random numbers of one step, for G groups of heads; each group has its own seed."""

    def __init__(self, seeds: Sequence[int], epoch: int, step: int, device: torch.device) -> None:
        self._seeds = [_combine_seed(seed, epoch, step) for seed in seeds]
        self._device = device
        # For random numbers that a custom module draws: another stream than that of noise and mixup.
        self._inner = _combine_seed(seeds[0], epoch, step, "inside")
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in self._seeds]

    def add_noise(self, features: Tensor, deviation: float) -> Tensor:
        """Features plus Gaussian noise, float32 (G, B, D): a new tensor."""
        noise = torch.empty_like(features)
        for part, generator in zip(noise, self._generators, strict=True):
            part.normal_(0.0, deviation, generator=generator)
        return noise.add_(features)

    def mix(self, features: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Mixture]:
        """Mixup (Zhang, Cisse, Dauphin, Lopez-Paz: mixup, ICLR 2018): one share per group, one partner for each row.

        Args:
            features: float32 (G, B, D).
            targets: (G, B) or (G, B, C).
            alpha: The parameter of the Beta distribution.

        Returns:
            The mixed features, a new tensor, and the targets of the partners with the shares.
        """
        drawn = [np.random.default_rng(seed) for seed in self._seeds]
        shares = torch.tensor([one.beta(alpha, alpha) for one in drawn], dtype=torch.float32)
        rows = targets.shape[1]
        partners = [torch.from_numpy(one.permutation(rows)).to(self._device) for one in drawn]
        mixed = [
            torch.lerp(some.index_select(0, partner), some, share)
            for some, partner, share in zip(features, partners, shares.tolist(), strict=True)
        ]
        others = [some.index_select(0, partner) for some, partner in zip(targets, partners, strict=True)]
        mixture = Mixture(partners=torch.stack(others), shares=shares.to(self._device))
        return mixed[0][None] if len(mixed) == 1 else torch.stack(mixed), mixture

    def global_generators(self) -> AbstractContextManager[None]:
        """Seed torch's global generators for this step inside the `with` block, and restore their states afterwards."""
        return seed_generators(self._inner, self._device)

    def dropout_factors(self, rows: int, wide: int, dropout: float) -> Tensor:
        """Dropout factors for the values after a layer, float32 (G, rows, wide): 0, or 1 / (1 - dropout)."""
        factors = torch.empty((len(self._generators), rows, wide), device=self._device)
        for part, generator in zip(factors, self._generators, strict=True):
            part.bernoulli_(1 - dropout, generator=generator)
        return factors.div_(1 - dropout)


def _combine_seed(seed: int, epoch: int, step: int, place: str = "") -> int:
    # Torch's CPU generator uses 32 bits of a seed, so all three numbers are hashed into these.
    return int.from_bytes(hashlib.sha256(f"{place}step {step} of epoch {epoch}, seed {seed}".encode()).digest()[:4])
