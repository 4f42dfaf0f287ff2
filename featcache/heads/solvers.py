"""Heads that are solved instead of trained by steps: logreg, ridge, centroid, knn.

A solver is a generator of candidates, one for each value of what it has to choose (C; alpha; k and metric). Each is
judged on val, and the best is kept: the highest score and, of equals, the lowest loss. Nothing is drawn at random.
No torch, but where neighbours are looked for on another device than the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError, InvalidOption
from featcache.heads.calibration import lowest, vote_smoothing
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
# What each head can say, and another one that can say the same.
SOLVED_TARGETS: Mapping[str, tuple[TargetKind, ...]] = {
    "logreg": ("classes", "lists"),
    "ridge": ("classes", "lists", "numbers"),
    "centroid": ("classes",),
    "knn": ("classes", "lists", "numbers"),
}
_KINDS = {"classes": "one class", "lists": "several classes", "numbers": "numbers"}


def require_solvable(kind: str, target: HeadTarget) -> None:
    """Raise InvalidOption where a kind of head cannot say what the target is."""
    if target.kind in SOLVED_TARGETS[kind]:
        return
    able = [name for name, kinds in SOLVED_TARGETS.items() if target.kind in kinds]
    raise InvalidOption(
        f"expected a head for {_KINDS[target.kind]} (target {', '.join(target.columns)}), got {kind}, "
        f"which says {' or '.join(_KINDS[one] for one in SOLVED_TARGETS[kind])}",
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
    """The best candidate of a kind of head.

    The linear ones are solved on the CPU, with train and val in memory as float32; knn looks for neighbours on
    `device`, and holds train there as stored.
    Raises InvalidOption for a target that the kind cannot say, HeadError where train does not fit in memory, and what
    `choose` raises.
    """
    require_solvable(kind, target)
    if kind == "knn":
        candidates = neighbours(train, val, target, device)
    else:
        candidates = LINEAR_SOLVERS[kind](_linear_problem(kind, train, val, target))
    return choose(candidates, interruption=interruption, progress=progress)


def neighbours(train: FeatureRows, val: FeatureRows, target: HeadTarget, device: str) -> Iterator[Candidate]:
    """A candidate for every k and both metrics; the neighbours are looked for once a metric.

    Train loss is nan: every row would be its own nearest neighbour.
    """
    _require_room("knn", len(train) * train.row_bytes, device)
    counts = [k for k in NEIGHBOUR_COUNTS if k <= len(train)]
    held = _remembering(train, target)
    scale = _scale_of(train, target)
    for cosine in (False, True):
        head = _searching(held.by(Vote(k=1, cosine=cosine)), device)
        found = np.concatenate([head.nearest(block, counts[-1]) for block in val.blocks()])
        for k in counts:
            added = _smoothing(found[:, :k], held.targets, val.targets, target)
            outputs = outputs_of(found[:, :k], held.targets, target, added)
            vote = Vote(k=k, cosine=cosine)
            yield Candidate(
                name=str(vote),
                of=2 * len(counts),
                build=partial(head.by, vote, added),
                train_loss=float("nan"),
                val=Outcome(
                    outputs=outputs,
                    targets=val.targets,
                    target=target,
                    scale=None if scale is None else scale.deviation,
                ).score(),
                at_end=k == counts[-1] and k < len(train),
            )


def _remembering(train: FeatureRows, target: HeadTarget) -> NeighbourHead:
    stored = train.stored()
    widths = [int(array.shape[1]) for array in train.arrays]
    scale, offset = (
        np.repeat(np.array(values, np.float32), widths)
        for values in ([array.scale for array in train.arrays], [array.offset for array in train.arrays])
    )
    features = stored[0] if len(stored) == 1 else np.concatenate(stored, axis=1)
    return NeighbourHead.remembering(features, train.targets, target, scale=scale, offset=offset)


def _searching(head: NeighbourHead, device: str) -> NeighbourHead:
    # On the CPU NumPy is as quick as torch: 20,000 x 512 rows in 10 s of its processor's time, to 13 s.
    if device == "cpu":
        return head
    from featcache.heads.neighbour_module import searching_on

    return searching_on(head, device)


def _smoothing(found: NDArray[np.int64], known: NDArray[Any], targets: NDArray[Any], target: HeadTarget) -> float:
    """What is added to the votes of neighbours int64 (n, k): it makes the best probabilities on val."""
    if target.kind == "numbers":
        return 1.0
    votes = count_votes(found, known, target)
    if target.kind == "classes":
        return vote_smoothing(votes, targets)
    k = found.shape[1]
    return lowest(lambda added: binary_cross_entropy(list_logits(votes, k, added), targets), 1e-3, 1e2)


def _linear_problem(kind: str, train: FeatureRows, val: FeatureRows, target: HeadTarget) -> LinearProblem:
    # logreg copies what it is given once more; ridge factorises the smaller Gram matrix in float64.
    size = 4 * train.feature_dim * (len(train) + len(val))
    side = min(len(train), train.feature_dim) if kind == "ridge" else 0
    _require_room(kind, size + 3 * 8 * side**2, "cpu")
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


def _require_room(kind: str, wanted: int, device: str) -> None:
    free = free_bytes(device)
    if wanted > free:
        raise HeadError(
            f"the head {kind} holds its features in memory: it needs {wanted / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free",
            hint="--head linear reads them from the cache as it goes; --pool avg extracts smaller ones",
        )
