"""Features of mean 0 and deviation 1, as train has them, and how a head is stored so that nobody has to know.

A head on standardised features, h((x - mean) / deviation), is the same as another one on the features as they are:
its first linear layer has W / deviation for W, and b - W (mean / deviation) for b. That one is kept.

Both are taken over all train rows where there are at most EXACT_ROWS, over a sample of more: reading ten million rows
twice would cost more than an epoch of training, and change neither by a hundredth of a deviation.
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

# Of more train rows, mean and deviation are those of a sample.
EXACT_ROWS = 1_000_000
SAMPLED_ROWS = 1 << 17
# Neighbours are read together; as in batches, so that a disk reads runs.
_RUN_ROWS = 16
# What a block may take in float64, while sums are taken.
BLOCK_BYTES = 64 << 20
# The same where memory is short, because features are streamed.
_SUMMED_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardisation:
    """`mean`, `deviation`: float64 (D,), holding float32 values. A constant feature has the deviation 1."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Standardisation:
        """That of float32 (N, D)."""
        return cls.over(lambda: [features], wide=features.shape[1])

    @classmethod
    def over(cls, read: Callable[[], Iterable[NDArray[np.float32] | Tensor]], *, wide: int) -> Standardisation:
        """That of all rows which `read` gives in blocks (n, `wide`): population deviation, summed in float64.

        Everything is read twice, so that a large mean does not swallow a small deviation.
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
        return cls(mean=_rounded(mean), deviation=_rounded(deviation))

    def apply_(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise float32 (N, D) where it lies."""
        features -= self.mean.astype(np.float32)
        features /= self.deviation.astype(np.float32)
        return features

    def folded(
        self, weight: NDArray[np.floating], bias: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The layer (O, D), (O,) on features as they are, for one on standardised features; float64."""
        plain = weight.astype(np.float64) / self.deviation
        return plain, bias.astype(np.float64) - plain @ self.mean

    def fold_into(self, head: nn.Module) -> None:
        """Make of a head on standardised features one on features as they are: its first linear layer is changed."""
        import torch
        from torch import nn

        first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
        step = max(1, _SUMMED_BYTES // (8 * len(self.mean)))
        with torch.no_grad():
            for part in slices(len(first.weight), step):
                weight, bias = self.folded(_array(first.weight[part]), _array(first.bias[part]))
                first.weight[part] = torch.from_numpy(weight)
                first.bias[part] = torch.from_numpy(bias)


def sampled_rows(rows: int) -> Tensor | None:
    """Which of `rows` rows mean and deviation are taken over: int64 (SAMPLED_ROWS,) ascending; None for all.

    Runs of neighbours spread evenly, so every class has its share in a set that is sorted by class. Each lies
    somewhere in its stretch, drawn alike for every training, so a period in the set does no harm.
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
    """What is said where `rows` train rows are too many to look at all of them before a head is trained."""
    if rows <= EXACT_ROWS or not config.standardize or config.architecture.solved:
        return ()
    return (
        f"features are standardised as {SAMPLED_ROWS:,} of the {rows:,} train rows have them, spread evenly: "
        f"a mean is off by about {100 / SAMPLED_ROWS**0.5:.1f} % of a deviation",
    )


def blocks(features: NDArray[np.float32], block_bytes: int = BLOCK_BYTES) -> Iterator[NDArray[np.float64]]:
    """The rows of (N, D) as float64, a block at a time."""
    for part in slices(len(features), max(1, block_bytes // (8 * features.shape[1]))):
        yield features[part].astype(np.float64)


def _array(features: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
    return features if isinstance(features, np.ndarray) else features.detach().cpu().numpy()


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)
