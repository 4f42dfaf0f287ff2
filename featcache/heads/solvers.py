"""Heads that a solver computes, instead of training by gradient steps: logreg, ridge, centroid, knn.

The head `text`, which needs the network's text encoder, is made in training/texts.py.

A solver is a generator of candidates, one for each value of its hyperparameter (C; alpha; k and metric). Each candidate
is evaluated on val, and the best is kept: the highest score and, of equal ones, the lowest loss. Nothing is random.
Torch is imported only to search for neighbours on another device than the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError, InvalidOption
from featcache.heads.calibration import minimise, vote_smoothing
from featcache.heads.candidates import Candidate, Choice, choose
from featcache.heads.linear_solvers import LINEAR_SOLVERS, LinearProblem
from featcache.heads.list_metrics import binary_cross_entropy
from featcache.heads.metrics import Outcome
from featcache.heads.neighbours import NeighbourHead, Vote, count_votes, list_logits, outputs_of
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.heads.target_scale import TargetScale
from featcache.rows.devices import free_bytes
from featcache.rows.features import FeatureRows
from featcache.rows.target import HeadTarget, TargetKind

NEIGHBOUR_COUNTS = (1, 3, 5, 10, 20, 50, 100)
# The kinds of target that each head supports.
SOLVED_TARGETS: Mapping[str, tuple[TargetKind, ...]] = {
    "logreg": ("classes", "lists"),
    "ridge": ("classes", "lists", "numbers"),
    "centroid": ("classes",),
    "knn": ("classes", "lists", "numbers"),
    "text": ("classes", "lists"),
}
_KINDS = {"classes": "one class", "lists": "several classes", "numbers": "numbers"}


def require_solvable(kind: str, target: HeadTarget) -> None:
    """Raise InvalidOption if a kind of head does not support the kind of the target."""
    if target.kind in SOLVED_TARGETS[kind]:
        return
    able = [name for name, kinds in SOLVED_TARGETS.items() if target.kind in kinds]
    raise InvalidOption(
        f"expected a head for {_KINDS[target.kind]} (target {', '.join(target.columns)}), got {kind}, "
        f"which predicts {' or '.join(_KINDS[one] for one in SOLVED_TARGETS[kind])}",
        hint=f"--head {', --head '.join(able)}, or one that is trained by steps: --head linear, --head mlp:128,64",
    )


def solve(
    kind: str,
    train: FeatureRows,
    val: FeatureRows,
    target: HeadTarget,
    *,
    device: str,
    interruption: Interruption,
    progress: Progress | None,
) -> Choice:
    """Solve a kind of head for all its candidates, and choose the best on val.

    Linear heads are solved on the CPU, with train and val in memory as float32; knn searches for neighbours on
    `device`, which holds train as stored.
    Raises InvalidOption for a target that the head does not support, HeadError if train does not fit in memory, and
    what `choose` raises.
    """
    require_solvable(kind, target)
    if kind == "knn":
        candidates = neighbours(train, val, target, device)
    else:
        candidates = LINEAR_SOLVERS[kind](_linear_problem(kind, train, val, target))
    return choose(candidates, interruption=interruption, progress=progress)


def neighbours(train: FeatureRows, val: FeatureRows, target: HeadTarget, device: str) -> Iterator[Candidate]:
    """A candidate for every k and both metrics; neighbours are searched once per metric.

    The train loss is nan, because every row would be its own nearest neighbour.
    """
    _require_memory("knn", len(train) * train.row_bytes, device)
    counts = [k for k in NEIGHBOUR_COUNTS if k <= len(train)]
    by_distance = _neighbour_head(train, target)
    scale = _scale_of(train, target)
    for cosine in (False, True):
        head = _with_search(by_distance.with_vote(Vote(k=1, cosine=cosine)), device)
        nearest = np.concatenate([head.nearest(block, counts[-1]) for block in val.blocks()])
        for k in counts:
            added = _smoothing(nearest[:, :k], head.targets, val.targets, target)
            outputs = outputs_of(nearest[:, :k], head.targets, target, added)
            vote = Vote(k=k, cosine=cosine)
            yield Candidate(
                name=str(vote),
                of=2 * len(counts),
                build=partial(head.with_vote, vote, added),
                train_loss=float("nan"),
                val=Outcome(
                    outputs=outputs,
                    targets=val.targets,
                    target=target,
                    scale=None if scale is None else scale.deviation,
                ).score(),
                at_end=k == counts[-1] and k < len(train),
            )


def _neighbour_head(train: FeatureRows, target: HeadTarget) -> NeighbourHead:
    stored = train.read_stored()
    widths = [int(array.shape[1]) for array in train.arrays]
    scale, offset = (
        np.repeat(np.array(values, np.float32), widths)
        for values in ([array.scale for array in train.arrays], [array.offset for array in train.arrays])
    )
    features = stored[0] if len(stored) == 1 else np.concatenate(stored, axis=1)
    return NeighbourHead.from_rows(features, train.targets, target, scale=scale, offset=offset)


def _with_search(head: NeighbourHead, device: str) -> NeighbourHead:
    # On the CPU, NumPy is as fast as torch: 20,000 x 512 rows take 10 s of processor time, with torch 13 s.
    if device == "cpu":
        return head
    from featcache.heads.neighbour_module import search_on_device

    return search_on_device(head, device)


def _smoothing(nearest: NDArray[np.int64], known: NDArray[Any], targets: NDArray[Any], target: HeadTarget) -> float:
    """The number to add to the votes of the neighbours int64 (n, k), for the lowest cross-entropy on val."""
    if target.kind == "numbers":
        return 1.0
    votes = count_votes(nearest, known, target)
    if target.kind == "classes":
        return vote_smoothing(votes, targets)
    k = nearest.shape[1]
    return minimise(lambda added: binary_cross_entropy(list_logits(votes, k, added), targets), 1e-3, 1e2)


def _linear_problem(kind: str, train: FeatureRows, val: FeatureRows, target: HeadTarget) -> LinearProblem:
    # logreg copies the features once more; ridge factorises the smaller Gram matrix in float64.
    size = 4 * train.feature_dim * (len(train) + len(val))
    side = min(len(train), train.feature_dim) if kind == "ridge" else 0
    _require_memory(kind, size + 3 * 8 * side**2, "cpu")
    return LinearProblem(
        train=train.values(),
        train_targets=train.targets,
        val=val.values(),
        val_targets=val.targets,
        target=target,
        scale=_scale_of(train, target),
    )


def _scale_of(train: FeatureRows, target: HeadTarget) -> TargetScale | None:
    return TargetScale.of(train.targets) if target.kind == "numbers" else None


def _require_memory(kind: str, wanted: int, device: str) -> None:
    free = free_bytes(device)
    if wanted > free:
        raise HeadError(
            f"the head {kind} holds its features in memory: it needs {wanted / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free",
            hint="--head linear reads them from the cache in batches; --pool avg extracts smaller ones",
        )
