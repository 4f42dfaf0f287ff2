"""Evaluate a head on batches: its outputs as NumPy arrays, from which metrics are computed without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featcache.heads.metrics import Outcome
from featcache.heads.solved import SolvedHead
from featcache.rows.batches import Epochs
from featcache.rows.target import HeadTarget

_STORED = {"classes": np.int64, "lists": np.int8, "numbers": np.float64}


def evaluate(
    head: nn.Module | SolvedHead,
    batches: Epochs,
    target: HeadTarget,
    *,
    scale: NDArray[np.float64] | None = None,
    loss: str = "mse",
) -> Outcome:
    """Run a head in eval mode on all rows; afterwards it is in its previous mode.

    Args:
        head: float32 (B, D) -> (B, C): logits, or numbers in the target's own units.
        batches: The rows.
        target: The target of the head.
        scale: For numbers: float64 (C,), the unit in which the loss is measured.
        loss: For numbers: "mse", "l1" or "huber".

    Returns:
        The outputs and the targets of all rows, in the order of the cache.
    """
    outputs, targets = outputs_of(head, batches)
    return Outcome(
        outputs=outputs, targets=targets.astype(_STORED[target.kind], copy=False), target=target, scale=scale, loss=loss
    )


def outputs_of(head: nn.Module | SolvedHead, batches: Epochs) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Outputs of a head in eval mode for all rows, float32 (N, C), and the targets of the batches."""
    if isinstance(head, SolvedHead):
        solved = [
            (head.outputs(features.cpu().numpy()), targets.cpu().numpy()) for features, targets in batches.in_order()
        ]
        outputs, targets = (np.concatenate(parts) for parts in zip(*solved, strict=True))
        return outputs, targets
    training = head.training
    head.eval()
    try:
        with torch.inference_mode():
            pairs = [(head(features).float(), targets) for features, targets in batches.in_order(reuse=True)]
    finally:
        head.train(training)
    outputs, targets = (torch.cat(parts).cpu().numpy() for parts in zip(*pairs, strict=True))
    return outputs, targets
