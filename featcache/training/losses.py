"""The losses of many heads on one batch: for each head the mean over the rows, as torch defines the losses.

Outputs are float32 (H, B, C), of H heads for B rows. Targets are those of each head's rows: int64 (H, B) for one
class, float32 (H, B, C) for several classes (0 and 1) and for numbers (standardised).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.errors import FeatcacheError, HeadError, InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.own import own_loss
from featcache.rows.target import HeadTarget

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadLosses:
    """The losses of H heads.

    Attributes:
        kind: Kind of the target.
        name: For numbers: `mse`, `l1` or `huber`.
        smoothing: Share of each label that is spread over all classes, float32 (H,); None for none.
        weights: float32 (H, C): for one class, the weights of the classes; for several, the weights of images that have
            the class. None for equal weights.
    """

    kind: str
    name: str
    smoothing: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, configs: Sequence[HeadConfig], weights: Sequence[Tensor | None], target: HeadTarget) -> Self:
        """The losses of heads with these options. `weights`: float32 (C,) for each head, None for equal ones."""
        given = [one for one in weights if one is not None]
        ones = torch.ones(target.outputs, device=given[0].device if given else None)
        return cls(
            kind=target.kind,
            name=configs[0].loss,
            smoothing=_unless_zero([config.label_smoothing for config in configs]),
            weights=torch.stack([ones if one is None else one for one in weights]) if given else None,
        )

    def to(self, device: torch.device) -> Self:
        """A copy on a device."""
        moved = [None if one is None else one.to(device) for one in (self.smoothing, self.weights)]
        return type(self)(kind=self.kind, name=self.name, smoothing=moved[0], weights=moved[1])

    def plain(self) -> Self:
        """The losses without class weights and without smoothing, which are used on val."""
        return type(self)(kind=self.kind, name=self.name, smoothing=None, weights=None)

    def select(self, heads: Tensor) -> Self:
        """The losses of some of the heads, int64 (h,)."""
        some = [None if one is None else one[heads] for one in (self.smoothing, self.weights)]
        return type(self)(kind=self.kind, name=self.name, smoothing=some[0], weights=some[1])

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each head, float32 (H,)."""
        if self.kind == "classes":
            return self._cross_entropy(outputs, targets)
        if self.kind == "lists":
            return self._binary(outputs, targets)
        return NUMBER_LOSSES[self.name](outputs, targets).mean(dim=(1, 2))

    def _cross_entropy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        heads, rows, classes = outputs.shape
        if self.weights is None and self.smoothing is None:
            if outputs.stride(0) < outputs.stride(1):
                # In heads of one layer, the outputs of all heads for a row are contiguous: flattened without a copy.
                flat = outputs.transpose(0, 1).reshape(-1, classes), targets.T.reshape(-1)
                return F.cross_entropy(*flat, reduction="none").view(rows, heads).mean(dim=0)
            flat = outputs.reshape(-1, classes), targets.reshape(-1)
            return F.cross_entropy(*flat, reduction="none").view(heads, rows).mean(dim=1)
        logs = F.log_softmax(outputs, dim=2)
        picked = logs.gather(2, targets[:, :, None])[:, :, 0]
        counts = torch.ones_like(picked) if self.weights is None else self.weights.gather(1, targets)
        everything = counts.sum(dim=1)
        losses = -(counts * picked).sum(dim=1) / everything
        if self.smoothing is None:
            return losses
        spread = logs if self.weights is None else logs * self.weights[:, None]
        return (1 - self.smoothing) * losses - self.smoothing / classes * spread.sum(dim=(1, 2)) / everything

    def _binary(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.smoothing is not None:
            smoothing = self.smoothing[:, None, None]
            targets = targets * (1 - smoothing) + smoothing / 2
        weights = None if self.weights is None else self.weights[:, None]
        losses = F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weights, reduction="none")
        return losses.mean(dim=(1, 2))


class OwnLoss:
    """A custom loss of one head: f(outputs float32 (B, C), targets) -> a tensor of one number.

    Args:
        path: Its path, for messages.
        function: The loss itself.
    """

    def __init__(self, path: str, function: Callable[..., Any]) -> None:
        self._path, self._function = path, function

    def to(self, device: torch.device) -> Self:
        """The loss itself: it has no tensors."""
        return self

    def plain(self) -> Self:
        """The loss itself: it is used on val too."""
        return self

    def select(self, heads: Tensor) -> Self:
        """The loss itself: there is only one head."""
        return self

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one head, float32 (1,). Raises HeadError or InvalidOption."""
        try:
            loss = self._function(outputs[0], targets[0])
        except FeatcacheError:
            raise
        except Exception as error:
            shapes = f"outputs {tuple(outputs.shape[1:])} and targets {tuple(targets.shape[1:])}"
            raise HeadError(f"the loss {self._path} fails on {shapes}: {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise InvalidOption(
                f"expected of the loss {self._path} a tensor of one number, got {got}", hint="the mean over the rows"
            )
        if outputs.requires_grad and not loss.requires_grad:
            raise InvalidOption(f"the loss {self._path} does not depend on the outputs: nothing can be learned with it")
        return loss.reshape(1).float()


def losses_of(
    configs: Sequence[HeadConfig], weights: Sequence[Tensor | None], target: HeadTarget
) -> HeadLosses | OwnLoss:
    """The losses of heads with these options; `weights`: see `HeadLosses.of`."""
    path = configs[0].own_loss
    return HeadLosses.of(configs, weights, target) if path is None else OwnLoss(path, own_loss(path))


NUMBER_LOSSES: Mapping[str, Loss] = {
    "mse": lambda outputs, targets: (outputs - targets).square(),
    "l1": lambda outputs, targets: (outputs - targets).abs(),
    "huber": lambda outputs, targets: F.huber_loss(outputs, targets, reduction="none"),
}


def balance_class_weights(targets: Tensor, target: HeadTarget) -> Tensor:
    """Class weights that give every class the same total weight, however many rows it has.

    Args:
        targets: Targets of all train rows: int64 (N,) for one class, float32 (N, C) for several.
        target: What they are.

    Returns:
        float32 (C,). For one class: N / (number of classes with rows x rows of the class), and 1 for a class without
        rows. For several: rows without the class / rows with it, and 1 where either is 0.
    """
    if target.kind == "classes":
        counts = torch.bincount(targets, minlength=target.outputs).float()
        there = counts > 0
        return torch.where(there, len(targets) / (int(there.sum()) * counts), torch.ones_like(counts))
    present = targets.sum(dim=0)
    absent = len(targets) - present
    return torch.where((present > 0) & (absent > 0), absent / present, torch.ones_like(present))


def _unless_zero(values: Sequence[float]) -> Tensor | None:
    return torch.tensor(values) if any(values) else None
