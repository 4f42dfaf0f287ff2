"""Compute the scores of many heads on val after an epoch, piece by piece."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featcache.heads.list_metrics import mean_average_precision
from featcache.heads.records import Score
from featcache.rows.target import HeadTarget
from featcache.training.stack import Stack


class EpochScores:
    """Sums over the pieces of val, for the heads of one stack.

    For several classes per image, all outputs are kept, float32 (H, N, C) on the CPU: average precision sorts them.
    """

    def __init__(self, stack: Stack, target: HeadTarget, rows: int) -> None:
        self._stack, self._target, self._rows = stack, target, rows
        self._losses = torch.zeros(stack.heads, dtype=torch.float64)
        self._hits = torch.zeros(stack.heads, dtype=torch.int64)
        self._errors = torch.zeros((stack.heads, target.outputs), dtype=torch.float64)
        # Sums and sums of squares of the targets of each group.
        self._sums = torch.zeros((2, stack.groups, target.outputs), dtype=torch.float64)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a piece of val: outputs float32 (H, B, C); scaled targets (G, B, ...) or (1, B, ...)."""
        rows = targets.shape[1]
        for_all = targets if len(targets) == 1 else self._stack.for_each_head(targets)
        with torch.inference_mode():
            self._losses += self._stack.losses(outputs, for_all).cpu().double() * rows
            if self._target.kind == "classes":
                self._hits += (outputs.argmax(dim=2) == for_all).sum(dim=1).cpu()
            elif self._target.kind == "lists":
                self._kept.append((outputs.cpu(), targets.cpu()))
            else:
                self._errors += (outputs.double() - for_all.double()).square().sum(dim=1).cpu()
                some = targets.double().cpu()
                self._sums += torch.stack([some.sum(dim=1), some.square().sum(dim=1)]).expand_as(self._sums)

    def scores(self) -> list[Score]:
        """The score of each head."""
        losses = (self._losses / self._rows).tolist()
        return [
            Score(value=value, loss=loss, metric=self._target.metric)
            for value, loss in zip(self._values(), losses, strict=True)
        ]

    def _values(self) -> list[float]:
        if self._target.kind == "classes":
            return (self._hits.double() / self._rows).tolist()
        if self._target.kind == "lists":
            outputs = torch.cat([piece for piece, _ in self._kept], dim=1).numpy()
            targets = torch.cat([piece for _, piece in self._kept], dim=1)[0].numpy()
            return [float(mean_average_precision(some, targets)) for some in outputs]
        sums, squares = self._sums.numpy()
        spread = np.repeat(squares - sums**2 / self._rows, self._stack.members, axis=0)
        errors = self._errors.numpy()
        # For a constant column, R2 is 1 if all predictions are right, else 0, as in scikit-learn.
        with np.errstate(divide="ignore", invalid="ignore"):
            determined = np.where(spread > 1e-12, 1 - errors / spread, np.where(errors > 0, 0.0, 1.0))
        return [float(value) for value in determined.mean(axis=1)]
