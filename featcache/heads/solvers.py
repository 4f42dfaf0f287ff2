"""Heads that are solved instead of trained by steps: logreg, ridge, centroid, knn.

A solver is a generator of candidates, one for each value of what it has to choose (C; alpha; k and metric). Each is
judged on val, and the best is kept: the highest accuracy and, of equals, the lowest loss. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from featcache.errors import HeadError
from featcache.heads.architectures import HeadShape
from featcache.heads.calibration import vote_smoothing
from featcache.heads.candidates import Candidate, Choice, choose
from featcache.heads.linear_solvers import LINEAR_SOLVERS, LinearProblem
from featcache.heads.metrics import Outcome
from featcache.heads.neighbours import Neighbours, Vote, count_votes
from featcache.heads.records import Progress
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches, FeatureRows, StreamedBatches, load_rows
from featcache.rows.devices import free_bytes

NEIGHBOUR_COUNTS = (1, 3, 5, 10, 20, 50, 100)
_CPU = torch.device("cpu")


def solve(
    kind: str,
    train: FeatureRows,
    val: FeatureRows,
    classes: int,
    *,
    device: torch.device,
    interruption: Interruption,
    progress: Progress | None,
) -> Choice:
    """The best candidate of a kind of head.

    The linear ones are solved on the CPU, with train and val in memory as float32; knn looks for neighbours on
    `device`, and holds train there as stored.
    Raises HeadError where that does not fit, and what `choose` raises.
    """
    if kind == "knn":
        candidates = neighbours(train, val, classes, device)
    else:
        problem = _linear_problem(kind, train, val, classes)
        candidates = LINEAR_SOLVERS[kind](problem)
    return choose(candidates, interruption=interruption, progress=progress)


def neighbours(train: FeatureRows, val: FeatureRows, classes: int, device: torch.device) -> Iterator[Candidate]:
    """A candidate for every k and both metrics; the neighbours are looked for once a metric.

    Train loss is nan: every row would be its own nearest neighbour.
    """
    _require_room("knn", len(train) * train.row_bytes, device)
    counts = [k for k in NEIGHBOUR_COUNTS if k <= len(train)]
    stored = load_rows(train, device)
    heads = {cosine: _neighbours(train, stored, classes, cosine) for cosine in (False, True)}
    batches = StreamedBatches(val, batch_size=1, seed=0, device=device)
    for cosine, head in heads.items():
        found, labels = _nearest_labels(head, batches, counts[-1])
        for k in counts:
            votes = count_votes(found[:, :k], classes)
            added = vote_smoothing(votes, labels)
            vote = Vote(k=k, cosine=cosine)
            yield Candidate(
                name=str(vote),
                of=2 * len(counts),
                build=partial(_voting, head, vote, added),
                train_loss=float("nan"),
                val=Outcome(logits=(votes + added).log(), labels=labels).score(),
                at_end=k == counts[-1] and k < len(train),
            )


def _neighbours(train: FeatureRows, stored: list[Tensor], classes: int, cosine: bool) -> Neighbours:
    device = stored[0].device
    features = stored[0] if len(stored) == 1 else torch.cat(stored, dim=1)
    with torch.device("meta"):
        head = Neighbours(
            HeadShape(
                in_features=train.feature_dim,
                classes=classes,
                rows=len(train),
                stored=str(features.dtype).removeprefix("torch."),
            )
        )
    widths = [int(array.shape[1]) for array in train.arrays]
    scale, offset = (
        torch.cat([torch.full((width,), float(value)) for width, value in zip(widths, values, strict=True)])
        for values in ([array.scale for array in train.arrays], [array.offset for array in train.arrays])
    )
    state = {
        "features": features,
        "labels": torch.from_numpy(train.targets),
        "scale": scale,
        "offset": offset,
        "centre": torch.zeros_like(scale),
        "k": torch.ones(1, dtype=torch.int64),
        "cosine": torch.tensor([cosine]),
        "smoothing": torch.ones(1),
    }
    head.load_state_dict({name: tensor.to(device) for name, tensor in state.items()}, assign=True)
    if not cosine:
        total = sum((block.sum(dim=0) for _, block in head.blocks()), torch.zeros_like(head.centre))
        head.centre.copy_(total / len(train))
    return head.eval()


def _nearest_labels(head: Neighbours, batches: Batches, k: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        pairs = [(head.nearest_labels(features, k), labels) for features, labels in batches.in_order()]
    return torch.cat([found for found, _ in pairs]), torch.cat([labels for _, labels in pairs])


def _voting(head: Neighbours, vote: Vote, added: float) -> nn.Module:
    head.k.fill_(vote.k)
    head.smoothing.fill_(added)
    return head


def _linear_problem(kind: str, train: FeatureRows, val: FeatureRows, classes: int) -> LinearProblem:
    # logreg copies what it is given once more; ridge factorises the smaller Gram matrix in float64.
    size = 4 * train.feature_dim * (len(train) + len(val))
    side = min(len(train), train.feature_dim) if kind == "ridge" else 0
    _require_room(kind, size + 3 * 8 * side**2, _CPU)
    return LinearProblem(
        train=_values(train),
        train_labels=torch.from_numpy(train.targets),
        val=_values(val),
        val_labels=torch.from_numpy(val.targets),
        classes=classes,
    )


def _values(rows: FeatureRows) -> Tensor:
    # float32 (N, D) on the CPU.
    values = torch.empty((len(rows), rows.feature_dim))
    start = 0
    for features, _ in StreamedBatches(rows, batch_size=1, seed=0, device=_CPU).in_order():
        values[start : start + len(features)] = features
        start += len(features)
    return values


def _require_room(kind: str, wanted: int, device: torch.device) -> None:
    free = free_bytes(device)
    if wanted > free:
        raise HeadError(
            f"the head {kind} holds its features in memory: it needs {wanted / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free",
            hint="--head linear reads them from the cache as it goes; --pool avg extracts smaller ones",
        )
