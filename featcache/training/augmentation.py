"""What a step does to its batch and between layers at random: noise, mixtures of two rows, dropout.

All of it is a pure function of the seed of the rows' order, the epoch and the step: nothing has to be remembered
between steps, and a head is changed alike alone and beside any others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featcache.rows.devices import seeded


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """How a batch is changed.

    Attributes:
        dropout: The probability that a value after a hidden layer is set to 0.
        mixup: Each row is mixed with another, by a share from Beta(mixup, mixup); 0 for none.
        noise: Deviation of Gaussian noise on the features; 0 for none.
    """

    dropout: float = 0.0
    mixup: float = 0.0
    noise: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.dropout or self.mixup or self.noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """The other half of a mixed batch.

    Attributes:
        partners: The targets of the rows mixed in: int64 (G, B) or float32 (G, B, C).
        shares: How much of each row is itself, one number a group: float32 (G,).
    """

    partners: Tensor
    shares: Tensor


class StepRandom:
    """The random numbers of one step, for G groups of heads; each group has a seed of its own."""

    def __init__(self, seeds: Sequence[int], epoch: int, step: int, device: torch.device) -> None:
        self._seeds = [_mixed_seed(seed, epoch, step) for seed in seeds]
        self._device = device
        # Of what a module draws by itself: another stream than that of noise and mixtures.
        self._inner = _mixed_seed(seeds[0], epoch, step, "inside")
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in self._seeds]

    def noisy(self, features: Tensor, deviation: float) -> Tensor:
        """Features with Gaussian noise, float32 (G, B, D): a new tensor."""
        noise = torch.empty_like(features)
        for part, generator in zip(noise, self._generators, strict=True):
            part.normal_(0.0, deviation, generator=generator)
        return noise.add_(features)

    def mixed(self, features: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Mixture]:
        """Mixup (Zhang, Cisse, Dauphin, Lopez-Paz: mixup, ICLR 2018): one share and one partner for each row.

        Features float32 (G, B, D) and targets (G, B) or (G, B, C); the features are a new tensor.
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
        """Torch's global generators start from this step inside, and are as before outside."""
        return seeded(self._inner, self._device)

    def kept(self, rows: int, wide: int, dropout: float) -> Tensor:
        """Factors for the values after a layer, float32 (G, rows, wide): 0, or 1 / (1 - dropout)."""
        factors = torch.empty((len(self._generators), rows, wide), device=self._device)
        for part, generator in zip(factors, self._generators, strict=True):
            part.bernoulli_(1 - dropout, generator=generator)
        return factors.div_(1 - dropout)


def _mixed_seed(seed: int, epoch: int, step: int, place: str = "") -> int:
    # Torch's generator on a CPU keeps 32 bits of a seed, so all three numbers have to be mixed into those.
    return int.from_bytes(hashlib.sha256(f"{place}step {step} of epoch {epoch}, seed {seed}".encode()).digest()[:4])
