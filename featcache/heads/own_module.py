"""Custom modules as heads: checks of a new module, and the wrapper around a trained one."""

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
    """A trained custom module with its standardisation, so that it takes plain features and gives plain targets.

    Standardisation cannot be folded into the layers of an arbitrary module.

    Args:
        head: The trained module, float32 (B, D) -> float32 (B, C).
        in_features: D.
        outputs: C.
        features: Standardisation of the features in training; None for none.
        targets: Scaling of the targets in training; None for none.
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
        # Multiplied by a factor, as in training, so that the results are identical to the bit.
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
    """Return the module, in train mode, after a forward pass on two rows. Raises InvalidOption or HeadError."""
    if not isinstance(module, nn.Module):
        raise InvalidOption(f"expected a torch module of the head {path}, got a {type(module).__name__}")
    _require_outputs(_try_forward(module.eval(), path, in_features), path, in_features, outputs)
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
        # The optimizers here update parameters as flat memory.
        tensor.data = tensor.data.contiguous()
    return module.train()


def _try_forward(module: nn.Module, path: str, in_features: int) -> Any:
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
