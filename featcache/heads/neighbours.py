"""The head `knn`: the nearest train features vote.

Nothing is trained. The head holds the train features as the cache stores them, and their labels; nearness is a
matrix product, computed in blocks, so that neither all distances nor all features as float32 are ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featcache.heads.architectures import HeadShape

# What a block of features as float32, or of similarities, may take.
BLOCK_BYTES = 128 << 20


class Neighbours(nn.Module):
    """Votes of the `k` nearest train rows: float32 (B, D) -> logits float32 (B, C), log(votes + smoothing).

    The class with most votes wins, and of equals the first. A feature is stored x scale + offset. Distances are
    taken from `centre`, which changes none of them, but keeps their differences from drowning in rounding; cosines
    are taken from the origin, and `centre` is 0 then.
    """

    features: Tensor  # (N, D), as stored
    labels: Tensor  # int64 (N,)
    scale: Tensor  # float32 (D,)
    offset: Tensor  # float32 (D,)
    centre: Tensor  # float32 (D,)
    k: Tensor  # int64 (1,)
    cosine: Tensor  # bool (1,): cosine rather than Euclidean
    smoothing: Tensor  # float32 (1,)

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.classes = shape.classes
        wide = shape.in_features
        self.register_buffer("features", torch.empty((shape.rows, wide), dtype=getattr(torch, shape.stored)))
        self.register_buffer("labels", torch.empty(shape.rows, dtype=torch.int64))
        for name in ("scale", "offset", "centre"):
            self.register_buffer(name, torch.empty(wide))
        self.register_buffer("k", torch.empty(1, dtype=torch.int64))
        self.register_buffer("cosine", torch.empty(1, dtype=torch.bool))
        self.register_buffer("smoothing", torch.empty(1))

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> logits float32 (B, C)."""
        labels = self.nearest_labels(features, int(self.k))
        return (count_votes(labels, self.classes) + self.smoothing).log()

    def nearest_labels(self, features: Tensor, k: int) -> Tensor:
        """Labels of the `k` nearest train rows, nearest first: float32 (B, D) -> int64 (B, k)."""
        cosine = bool(self.cosine)
        asked = features - self.centre
        best: tuple[Tensor, Tensor] | None = None
        for start, known in self.blocks(len(features)):
            nearness = _cosine(asked, known) if cosine else _minus_distance(asked, known)
            near, where = nearness.topk(min(k, len(known)), dim=1)
            labels = self.labels[start + where]
            best = (near, labels) if best is None else _merged(best, (near, labels), k)
        if best is None:
            raise ValueError("expected at least one train row")
        return best[1]

    def blocks(self, asked: int = 1) -> Iterator[tuple[int, Tensor]]:
        """First row and values, float32 (n, D), of each block of train; of a size for `asked` rows to compare."""
        rows = max(1, BLOCK_BYTES // (4 * max(asked, self.features.shape[1])))
        for start in range(0, len(self.features), rows):
            stored = self.features[start : start + rows].float()
            yield start, torch.addcmul(self.offset, stored, self.scale).sub_(self.centre)


class FixedNeighbours(nn.Module):
    """The vote of a `Neighbours` whose k and metric are settled: all train rows at once, so that it can be exported."""

    def __init__(self, head: Neighbours) -> None:
        super().__init__()
        self.neighbours = head
        self.k = min(int(head.k), len(head.features))
        self.nearness = _cosine if bool(head.cosine) else _minus_distance

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> logits float32 (B, C)."""
        head = self.neighbours
        known = torch.addcmul(head.offset, head.features.float(), head.scale) - head.centre
        _, where = self.nearness(features - head.centre, known).topk(self.k, dim=1)
        return (count_votes(head.labels[where], head.classes) + head.smoothing).log()


@dataclass(frozen=True, kw_only=True)
class Vote:
    """How many neighbours are asked, and what near means."""

    k: int
    cosine: bool

    def __str__(self) -> str:
        return f"k={self.k} {'cosine' if self.cosine else 'euclidean'}"


def count_votes(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 (B, k) -> votes float32 (B, classes)."""
    votes = torch.zeros((labels.shape[0], classes), device=labels.device)
    return votes.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float32))


def _cosine(asked: Tensor, known: Tensor) -> Tensor:
    # Without |a|, which is the same for all rows b. A row of zeros is near to none and far from none.
    return (asked @ known.T).div_(torch.linalg.vector_norm(known, dim=1).clamp_(min=1e-12))


def _minus_distance(asked: Tensor, known: Tensor) -> Tensor:
    # -|a - b|^2 without |a|^2, which is the same for all rows b.
    return torch.addmm(-known.square().sum(dim=1), asked, known.T, alpha=2.0)


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    near, labels = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    best, where = near.topk(min(k, near.shape[1]), dim=1)
    return best, labels.gather(1, where)
