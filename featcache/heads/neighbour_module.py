"""The head `knn` as a torch module, for search on a GPU and for export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featcache.heads import neighbours
from featcache.heads.architectures import HeadShape
from featcache.heads.neighbours import NeighbourHead, targets_name
from featcache.rows.scaling import scale_stored

_TARGETS = {"classes": torch.int64, "lists": torch.int8, "numbers": torch.float32}


class Neighbours(nn.Module):
    """Outputs from the `k` nearest train rows: float32 (B, D) -> float32 (B, C). See heads/neighbours.py."""

    features: Tensor  # (N, D), as stored
    scale: Tensor  # float32 (D,)
    offset: Tensor  # float32 (D,)
    centre: Tensor  # float32 (D,)
    k: Tensor  # int64 (1,)
    cosine: Tensor  # bool (1,): cosine rather than Euclidean
    smoothing: Tensor  # float32 (1,)

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.classes, self.kind = shape.classes, shape.kind
        wide = shape.in_features
        self.register_buffer("features", torch.empty((shape.rows, wide), dtype=getattr(torch, shape.stored)))
        # `labels` int64 (N,) for classes, else `targets` (N, C).
        sizes = (shape.rows,) if self.kind == "classes" else (shape.rows, shape.classes)
        self.register_buffer(targets_name(self.kind), torch.empty(sizes, dtype=_TARGETS[self.kind]))
        for name in ("scale", "offset", "centre"):
            self.register_buffer(name, torch.empty(wide))
        self.register_buffer("k", torch.empty(1, dtype=torch.int64))
        self.register_buffer("cosine", torch.empty(1, dtype=torch.bool))
        self.register_buffer("smoothing", torch.empty(1))

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> float32 (B, C)."""
        return self.outputs_of(self.nearest(features, int(self.k)))

    def outputs_of(self, rows: Tensor) -> Tensor:
        """Outputs from neighbours: train rows int64 (B, k) -> float32 (B, C)."""
        targets: Tensor = getattr(self, targets_name(self.kind))[rows]
        if self.kind == "numbers":
            return targets.mean(dim=1)
        if self.kind == "classes":
            votes = torch.zeros((rows.shape[0], self.classes), device=rows.device)
            votes = votes.scatter_add_(1, targets, torch.ones_like(targets, dtype=torch.float32))
            return (votes + self.smoothing).log()
        votes = targets.float().sum(dim=1)
        return (votes + self.smoothing).log() - (rows.shape[1] - votes + self.smoothing).log()

    def nearest(self, features: Tensor, k: int) -> Tensor:
        """The `k` nearest train rows, nearest first: float32 (B, D) -> int64 (B, k)."""
        nearness = _cosine if bool(self.cosine) else _minus_distance
        queries = features - self.centre
        best: tuple[Tensor, Tensor] | None = None
        for start, known in self.blocks(len(features)):
            near, rows = nearness(queries, known).topk(min(k, len(known)), dim=1)
            rows += start
            best = (near, rows) if best is None else _merge(best, (near, rows), k)
        if best is None:
            raise ValueError("expected at least one train row")
        return best[1]

    def blocks(self, queries: int = 1) -> Iterator[tuple[int, Tensor]]:
        """First row and values, float32 (n, D), of each block of train; small enough to compare with `queries` rows."""
        rows = max(1, neighbours.BLOCK_BYTES // (4 * max(queries, self.features.shape[1])))
        for start in range(0, len(self.features), rows):
            stored = self.features[start : start + rows].to(torch.float32, copy=True)
            yield start, scale_stored(stored, self.scale, self.offset).sub_(self.centre)


class FixedNeighbours(nn.Module):
    """A `Neighbours` with constant k and metric, which compares all train rows at once, so that it can be exported."""

    def __init__(self, head: Neighbours) -> None:
        super().__init__()
        self.neighbours = head
        self.k = min(int(head.k), len(head.features))
        self.nearness = _cosine if bool(head.cosine) else _minus_distance

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> float32 (B, C)."""
        head = self.neighbours
        known = head.features.float() * head.scale + head.offset - head.centre
        return head.outputs_of(self.nearness(features - head.centre, known).topk(self.k, dim=1)[1])


def search_on_device(head: NeighbourHead, device: str) -> NeighbourHead:
    """The same head with search by torch on `device`, which holds the train features as stored."""
    from featcache.heads.stored import neighbour_module

    module = neighbour_module(head).to(device)

    def search(features: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        with torch.inference_mode():
            rows: NDArray[np.int64] = module.nearest(torch.from_numpy(features).to(device), k).cpu().numpy()
        return rows

    return replace(head, search=search)


def _cosine(queries: Tensor, known: Tensor) -> Tensor:
    # Not divided by the norm of the query, which is the same for all train rows. A row of zeros has similarity 0.
    return (queries @ known.T).div_(torch.linalg.vector_norm(known, dim=1).clamp_(min=1e-12))


def _minus_distance(queries: Tensor, known: Tensor) -> Tensor:
    # -|q - t|^2 without |q|^2, which is the same for all train rows t.
    return torch.addmm(-known.square().sum(dim=1), queries, known.T, alpha=2.0)


def _merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    near, rows = (torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
    best, where = near.topk(min(k, near.shape[1]), dim=1)
    return best, rows.gather(1, where)
