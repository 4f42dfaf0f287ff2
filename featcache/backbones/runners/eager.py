"""The runner `eager`: plain torch, every operation called from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from featcache.backbones.tapping import channels_last, copy_module

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.feature_module import FeatureModule
    from featcache.backbones.program import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Eager:
    one_shape = False
    alone = False
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")

    def require(self) -> None:
        """Nothing is needed except torch."""

    def compute(self, rows: FeatureModule, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner."""
        return in_precision(module_on(rows, device), device, precision)


def module_on(rows: FeatureModule, device: str) -> nn.Module:
    """The module on a device: unchanged on the CPU, else a copy in channels-last."""
    return rows if device == "cpu" else channels_last(copy_module(rows).to(device))


def in_precision(module: nn.Module, device: str, precision: str) -> Compute:
    """The module as a function, under autocast if the precision is below fp32."""
    kind, dtype = torch.device(device).type, _AUTOCAST.get(precision)

    def compute(batch: Tensor) -> Mapping[str, Tensor]:
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            features: Mapping[str, Tensor] = module(batch)
            return features

    return compute


RUNNER = _Eager()
