"""Features of mean 0 and deviation 1, as train has them, and how a head is stored so that nobody has to know.

A head on standardised features, h((x - mean) / deviation), is the same as another one on the features as they are:
its first linear layer has W / deviation for W, and b - W (mean / deviation) for b. That one is kept.

Both are taken over all train rows where there are at most EXACT_ROWS, over a sample of more: reading ten million rows
twice would cost more than an epoch of training, and change neither by a hundredth of a deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featcache.heads.config import HeadConfig

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

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardisation:
        """That of float32 (N, D)."""
        return cls.over(lambda: blocks(features), wide=features.shape[1])

    @classmethod
    def over(cls, read: Callable[[], Iterable[Tensor]], *, wide: int) -> Standardisation:
        """That of all rows which `read` gives in blocks (n, `wide`): population deviation, summed in float64.

        Everything is read twice, so that a large mean does not swallow a small deviation.
        """
        mean, squares, rows = torch.zeros(wide).double(), torch.zeros(wide).double(), 0
        for features in read():
            for block in blocks(features.cpu(), _SUMMED_BYTES):
                mean += block.sum(dim=0)
            rows += len(features)
        mean /= rows
        for features in read():
            for block in blocks(features.cpu(), _SUMMED_BYTES):
                squares += block.sub_(mean).square_().sum(dim=0)
        deviation = (squares / rows).sqrt()
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

    def fold_into(self, head: nn.Module) -> None:
        """Make of a head on standardised features one on features as they are: its first linear layer is changed."""
        first = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
        start = 0
        with torch.no_grad():
            for block in blocks(first.weight.cpu(), _SUMMED_BYTES):
                part = slice(start, start + len(block))
                weight, bias = self.folded(block, first.bias[part].cpu())
                first.weight[part] = weight
                first.bias[part] = bias
                start = part.stop


def sampled_rows(rows: int) -> Tensor | None:
    """Which of `rows` rows mean and deviation are taken over: int64 (SAMPLED_ROWS,) ascending; None for all.

    Runs of neighbours spread evenly, so every class has its share in a set that is sorted by class. Each lies
    somewhere in its stretch, drawn alike for every training, so a period in the set does no harm.
    """
    if rows <= EXACT_ROWS:
        return None
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


def blocks(features: Tensor, block_bytes: int = BLOCK_BYTES) -> Iterator[Tensor]:
    """The rows of (N, D) as float64, a block at a time."""
    rows = max(1, block_bytes // (8 * features.shape[1]))
    for start in range(0, len(features), rows):
        yield features[start : start + rows].to(torch.float64, copy=True)


class StandardisedHead(nn.Module):
    """A head while it is trained on standardised features: float32 (B, D) as they are -> logits (B, C).

    The features are standardised where they lie: for wide ones, memory for another copy costs more than that.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, head: nn.Module, standard: Standardisation) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", standard.mean.float())
        self.register_buffer("scale", (1 / standard.deviation).float())

    def forward(self, features: Tensor) -> Tensor:
        """Standardise, then the head."""
        logits: Tensor = self.head(features.sub_(self.mean).mul_(self.scale))
        return logits
