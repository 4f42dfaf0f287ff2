"""Torch as it is: every operation called from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from featcache.backbones.tapping import channels_last, copied

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.normalised import Rows
    from featcache.backbones.program import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Eager:
    one_shape = False
    alone = False
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")

    def require(self) -> None:
        """Nothing: torch is there."""

    def compute(self, rows: Rows, *, device: str, precision: str, batch_size: int) -> Compute:
        """See Runner."""
        return in_precision(placed(rows, device), device, precision)


def placed(rows: Rows, device: str) -> nn.Module:
    """The rows' module on a device: itself on the CPU, else a copy in channels-last."""
    return rows if device == "cpu" else channels_last(copied(rows).to(device))


def in_precision(module: nn.Module, device: str, precision: str) -> Compute:
    """The module under autocast where the precision is below fp32."""
    kind, dtype = torch.device(device).type, _AUTOCAST.get(precision)

    def compute(batch: Tensor) -> Mapping[str, Tensor]:
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            found: Mapping[str, Tensor] = module(batch)
            return found

    return compute


RUNNER = _Eager()
