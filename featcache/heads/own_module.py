"""Modules of one's own as heads: what is asked of them, and what is put around one that is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featcache.errors import HeadError, InvalidOption
from featcache.heads.standardisation import Standardisation
from featcache.heads.target_scale import TargetScale


class OwnHead(nn.Module):
    """A module that learned standardised features and targets, on features and targets as they are.

    Of a module that is not known, neither can be folded into its layers.

    Args:
        head: float32 (B, D) -> float32 (B, C).
        in_features: D.
        outputs: C.
        features: What its features were standardised by; None for nothing.
        targets: What its targets were scaled by; None for nothing.
    """

    feature_mean: Tensor
    feature_factor: Tensor
    target_mean: Tensor
    target_deviation: Tensor

    def __init__(
        self,
        head: nn.Module,
        in_features: int,
        outputs: int,
        *,
        features: Standardisation | None = None,
        targets: TargetScale | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        zeros, ones = np.zeros(in_features), np.ones(in_features)
        # A factor, as in training, and so the same to the bit.
        self._keep("feature_mean", zeros if features is None else features.mean)
        self._keep("feature_factor", ones if features is None else 1 / features.deviation)
        self._keep("target_mean", np.zeros(outputs) if targets is None else targets.mean)
        self._keep("target_deviation", np.ones(outputs) if targets is None else targets.deviation)

    def forward(self, features: Tensor) -> Tensor:
        """Features float32 (B, D) -> outputs float32 (B, C)."""
        outputs: Tensor = self.head((features - self.feature_mean) * self.feature_factor)
        return outputs * self.target_deviation + self.target_mean

    def _keep(self, name: str, values: NDArray[np.float64]) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))


def require_head(module: object, path: str, in_features: int, outputs: int) -> nn.Module:
    """The module, in train mode, if it is a head. Raises InvalidOption or HeadError; it is tried on two rows."""
    if not isinstance(module, nn.Module):
        raise InvalidOption(f"expected a torch module of the head {path}, got a {type(module).__name__}")
    _require_outputs(_tried(module.eval(), path, in_features), path, in_features, outputs)
    wrong = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in module.named_parameters()
        if tensor.dtype != torch.float32
    ]
    if wrong:
        raise InvalidOption(f"expected float32 parameters of the head {path}, got {', '.join(wrong)}")
    if not any(tensor.requires_grad for tensor in module.parameters()):
        raise InvalidOption(f"expected parameters to train in the head {path}, got none")
    for tensor in module.parameters():
        # Optimizers go by a tensor's memory.
        tensor.data = tensor.data.contiguous()
    return module.train()


def _tried(module: nn.Module, path: str, in_features: int) -> Any:
    try:
        with torch.no_grad():
            return module(torch.zeros(2, in_features))
    except Exception as error:
        raise HeadError(
            f"the head {path} fails on features float32 (2, {in_features}): {type(error).__name__}: {error}",
            hint="it has to map (B, in_features) to (B, outputs)",
        ) from error


def _require_outputs(given: Any, path: str, in_features: int, outputs: int) -> None:
    if not isinstance(given, Tensor):
        got = f"a {type(given).__name__}"
    elif given.shape != (2, outputs) or given.dtype != torch.float32:
        got = f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
    else:
        return
    raise InvalidOption(
        f"expected of the head {path} for features (2, {in_features}) outputs float32 (2, {outputs}), got {got}",
        hint="its factory is called as f(in_features, outputs, **head_arguments)",
    )
