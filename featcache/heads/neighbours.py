"""The head `knn`: k nearest neighbours among the train features.

Nothing is trained. The head holds the train features as the cache stores them, and their targets. Similarities are
matrix products, computed in blocks, so that memory never holds all distances, or all features as float32.

kind      outputs from k neighbours
classes   log(votes + smoothing): the class with most votes wins, of equal ones the first
lists     the logit of the share of neighbours that have a class: log(with + smoothing) - log(without + smoothing)
numbers   the mean of their numbers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featcache.heads.solved import SolvedHead, Tensors
from featcache.rows.scaling import scale_stored
from featcache.rows.target import HeadTarget, TargetKind

# Size of a block of features as float32, or of similarities.
BLOCK_BYTES = 128 << 20
# Rows whose neighbours are searched together.
QUERY_ROWS = 4096

Floats = NDArray[np.float32]
# float32 (n, D), k -> the nearest k train rows, nearest first: int64 (n, k).
Search = Callable[[Floats, int], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Number of neighbours, and the metric: cosine or Euclidean."""

    k: int
    cosine: bool

    def __str__(self) -> str:
        return f"k={self.k} {'cosine' if self.cosine else 'euclidean'}"


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighbourHead(SolvedHead):
    """A head that holds the train rows, and predicts from the nearest ones.

    The value of a feature is stored x scale + offset. For distances, `centre` is subtracted from all features: this
    changes no distance, but avoids rounding errors in their differences. For cosines, `centre` is 0.

    Attributes:
        target: The target of the head.
        features: (N, D) train features, as stored.
        targets: int64 (N,), int8 (N, C) or float32 (N, C), by the target's kind.
        scale, offset, centre: float32 (D,).
        vote: k and the metric.
        smoothing: The number added to votes; not used for numbers.
        search: Finds the nearest rows instead of NumPy (heads/neighbour_module.py).
    """

    target: HeadTarget
    features: NDArray[Any]
    targets: NDArray[Any]
    scale: Floats
    offset: Floats
    centre: Floats
    vote: Vote
    smoothing: float = 1.0
    search: Search | None = None

    @classmethod
    def of(cls, tensors: Tensors, target: HeadTarget) -> Self:
        """The head from its stored tensors."""
        return cls(
            target=target,
            features=tensors["features"],
            targets=tensors[targets_name(target.kind)],
            scale=tensors["scale"],
            offset=tensors["offset"],
            centre=tensors["centre"],
            vote=Vote(k=int(tensors["k"][0]), cosine=bool(tensors["cosine"][0])),
            smoothing=float(tensors["smoothing"][0]),
        )

    @classmethod
    def from_rows(
        cls, features: NDArray[Any], targets: NDArray[Any], target: HeadTarget, *, scale: Floats, offset: Floats
    ) -> Self:
        """A head that holds these rows, with Euclidean distance; its centre is their mean."""
        if target.kind == "numbers":
            targets = targets.astype(np.float32)
        head = cls(
            target=target,
            features=features,
            targets=targets,
            scale=scale,
            offset=offset,
            centre=np.zeros_like(scale),
            vote=Vote(k=1, cosine=False),
        )
        total = sum((block.sum(axis=0, dtype=np.float64) for _, block in head.blocks()), np.zeros(len(scale)))
        return replace(head, centre=(total / len(features)).astype(np.float32))

    def with_vote(self, vote: Vote, smoothing: float = 1.0) -> Self:
        """A head with the same rows, but another k, metric and smoothing."""
        centre = np.zeros_like(self.centre) if vote.cosine else self.centre
        search = self.search if vote.cosine == self.vote.cosine else None
        return replace(self, vote=vote, smoothing=smoothing, centre=centre, search=search)

    def outputs(self, features: Floats) -> Floats:
        return outputs_of(self.nearest(features, self.vote.k), self.targets, self.target, self.smoothing)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The train features and targets, and all other parameters, by name."""
        return {
            "features": self.features,
            targets_name(self.target.kind): self.targets,
            "scale": self.scale,
            "offset": self.offset,
            "centre": self.centre,
            "k": np.array([self.vote.k], np.int64),
            "cosine": np.array([self.vote.cosine]),
            "smoothing": np.array([self.smoothing], np.float32),
        }

    @property
    def learned(self) -> int:
        return 0

    def nearest(self, features: Floats, k: int) -> NDArray[np.int64]:
        """The `k` nearest train rows, or all if there are fewer, nearest first: float32 (n, D) -> int64 (n, k)."""
        search = self.search or self._nearest
        parts = [search(features[start : start + QUERY_ROWS], k) for start in range(0, len(features), QUERY_ROWS)]
        return np.concatenate(parts) if parts else np.empty((0, min(k, len(self.features))), np.int64)

    def blocks(self, queries: int = 1) -> Iterator[tuple[int, Floats]]:
        """First row and values, float32 (n, D), of each block of train; small enough to compare with `queries` rows."""
        rows = max(1, BLOCK_BYTES // (4 * max(queries, self.features.shape[1])))
        for start in range(0, len(self.features), rows):
            values = scale_stored(self.features[start : start + rows].astype(np.float32), self.scale, self.offset)
            values -= self.centre
            yield start, values

    def _nearest(self, features: Floats, k: int) -> NDArray[np.int64]:
        queries = features - self.centre
        near: Floats = np.empty((len(queries), 0), np.float32)
        rows: NDArray[np.int64] = np.empty((len(queries), 0), np.int64)
        for start, known in self.blocks(len(queries)):
            nearness = _cosine(queries, known) if self.vote.cosine else _minus_distance(queries, known)
            best = _largest(nearness, k)
            near = np.concatenate([near, np.take_along_axis(nearness, best, axis=1)], axis=1)
            rows = np.concatenate([rows, best + start], axis=1)
            if near.shape[1] > k:
                best = _largest(near, k)
                near, rows = np.take_along_axis(near, best, axis=1), np.take_along_axis(rows, best, axis=1)
        return np.take_along_axis(rows, np.argsort(-near, axis=1, kind="stable"), axis=1)


def targets_name(kind: TargetKind) -> str:
    """The name of the tensor that holds the targets of the train rows."""
    return "labels" if kind == "classes" else "targets"


def outputs_of(rows: NDArray[np.int64], targets: NDArray[Any], target: HeadTarget, smoothing: float) -> Floats:
    """Outputs from neighbours: train rows int64 (n, k) -> float32 (n, C). `targets`: those of all train rows."""
    if target.kind == "numbers":
        mean: Floats = targets[rows].mean(axis=1)
        return mean
    votes = count_votes(rows, targets, target)
    if target.kind == "classes":
        logits: Floats = np.log(votes + np.float32(smoothing))
        return logits
    return list_logits(votes, rows.shape[1], smoothing)


def count_votes(rows: NDArray[np.int64], targets: NDArray[Any], target: HeadTarget) -> Floats:
    """Number of neighbours with each class: train rows int64 (n, k) -> float32 (n, C)."""
    if target.kind == "lists":
        votes: Floats = targets[rows].sum(axis=1, dtype=np.float32)
        return votes
    classes = target.outputs
    places = targets[rows] + classes * np.arange(len(rows))[:, None]
    counts = np.bincount(places.ravel(), minlength=classes * len(rows))
    return counts.reshape(len(rows), classes).astype(np.float32)


def list_logits(votes: Floats, k: int, smoothing: float) -> Floats:
    """The logits of the shares of `k` votes, float32 (n, C); smoothing keeps them finite."""
    added = np.float32(smoothing)
    logits: Floats = np.log(votes + added) - np.log(np.float32(k) - votes + added)
    return logits


def _largest(values: Floats, k: int) -> NDArray[np.int64]:
    """The columns of the `k` largest values of each row, or of all if there are fewer, in any order."""
    if values.shape[1] <= k:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, -k, axis=1)[:, -k:]


def _cosine(queries: Floats, known: Floats) -> Floats:
    # Not divided by the norm of the query, which is the same for all train rows. A row of zeros has similarity 0.
    nearness: Floats = queries @ known.T
    nearness /= np.maximum(np.linalg.norm(known, axis=1), 1e-12)
    return nearness


def _minus_distance(queries: Floats, known: Floats) -> Floats:
    # -|q - t|^2 without |q|^2, which is the same for all train rows t.
    nearness: Floats = queries @ (2 * known).T
    nearness -= np.einsum("nd,nd->n", known, known)
    return nearness
