"""Standardise features by the mean and standard deviation of train, and fold this into the stored head.

A head on standardised features, h((x - mean) / deviation), equals another head on plain features: its first linear
layer has W / deviation instead of W, and b - W (mean / deviation) instead of b. That one is stored.

Mean and deviation are those of all train rows up to EXACT_ROWS, and of a sample above: reading ten million rows twice
would take longer than an epoch of training, and change neither by a hundredth of a deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.heads.config import HeadConfig
from featcache.rows.features import slices

if TYPE_CHECKING:
    from torch import Tensor, nn

# With more train rows, mean and deviation are those of a sample.
EXACT_ROWS = 1_000_000
SAMPLED_ROWS = 1 << 17
# Neighbouring rows of the sample that are read together, so that a disk reads contiguous ranges.
_RUN_ROWS = 16
# Size of a block in float64, while sums are computed.
BLOCK_BYTES = 64 << 20
# The same where memory is scarce, because features are streamed.
_SUMMED_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardisation:
    """Mean and standard deviation of features: float64 (D,), rounded to float32. Constant features have deviation 1."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Standardisation:
        """The standardisation of features, float32 (N, D)."""
        return cls.over(lambda: [features], wide=features.shape[1])

    @classmethod
    def over(cls, read: Callable[[], Iterable[NDArray[np.float32] | Tensor]], *, wide: int) -> Standardisation:
        """The standardisation of all rows that `read` yields in blocks (n, `wide`); sums are in float64.

        The deviation is that of the population. All rows are read twice, first for the mean: a small deviation around a
        large mean would be lost in rounding otherwise.
        """
        mean, squares, rows = np.zeros(wide), np.zeros(wide), 0
        for features in read():
            for block in blocks(_array(features), _SUMMED_BYTES):
                mean += block.sum(axis=0)
            rows += len(features)
        mean /= rows
        for features in read():
            for block in blocks(_array(features), _SUMMED_BYTES):
                block -= mean
                squares += np.einsum("nd,nd->d", block, block)
        deviation = np.sqrt(squares / rows)
        # A constant that float16 cannot hold exactly is still a constant.
        deviation[(deviation <= 1e-6 * np.abs(mean)) | (deviation == 0)] = 1.0
        return cls(mean=_round_to_float32(mean), deviation=_round_to_float32(deviation))

    def apply_(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise features float32 (N, D) in place."""
        features -= self.mean.astype(np.float32)
        features /= self.deviation.astype(np.float32)
        return features

    def fold(
        self, weight: NDArray[np.floating], bias: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The layer (O, D), (O,) on plain features that equals one on standardised features; float64."""
        plain = weight.astype(np.float64) / self.deviation
        return plain, bias.astype(np.float64) - plain @ self.mean

    def fold_into(self, head: nn.Module) -> None:
        """Change the first linear layer of a head on standardised features, so that the head takes plain features."""
        import torch
        from torch import nn

        first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
        step = max(1, _SUMMED_BYTES // (8 * len(self.mean)))
        with torch.no_grad():
            for part in slices(len(first.weight), step):
                weight, bias = self.fold(_array(first.weight[part]), _array(first.bias[part]))
                first.weight[part] = torch.from_numpy(weight)
                first.bias[part] = torch.from_numpy(bias)


def sample_rows(rows: int) -> Tensor | None:
    """The rows, of `rows`, that mean and deviation are computed from: int64 (SAMPLED_ROWS,) ascending; None for all.

    The sample consists of short runs of neighbouring rows, one in each of equally long intervals, so that every class
    has its share in a dataset that is sorted by class. The place of a run in its interval is random (with a fixed
    seed), so that a periodic order of the dataset does no harm.
    """
    if rows <= EXACT_ROWS:
        return None
    import torch

    runs = SAMPLED_ROWS // _RUN_ROWS
    bounds = torch.arange(runs + 1) * rows // runs
    drawn = torch.rand(runs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = bounds[:-1] + (drawn * (bounds.diff() - _RUN_ROWS + 1)).long()
    return (first[:, None] + torch.arange(_RUN_ROWS)).reshape(-1)


def standardising_notes(rows: int, config: HeadConfig) -> tuple[str, ...]:
    """A note if mean and deviation are those of a sample, because there are more than EXACT_ROWS train rows."""
    if rows <= EXACT_ROWS or not config.standardize or config.architecture.solved:
        return ()
    return (
        f"features are standardised by a sample of {SAMPLED_ROWS:,} of the {rows:,} train rows, spread evenly: "
        f"a mean is off by about {100 / SAMPLED_ROWS**0.5:.1f} % of a deviation",
    )


def blocks(features: NDArray[np.float32], block_bytes: int = BLOCK_BYTES) -> Iterator[NDArray[np.float64]]:
    """The rows of features (N, D) as float64, one block at a time."""
    for part in slices(len(features), max(1, block_bytes // (8 * features.shape[1]))):
        yield features[part].astype(np.float64)


def _array(features: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
    return features if isinstance(features, np.ndarray) else features.detach().cpu().numpy()


def _round_to_float32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)
