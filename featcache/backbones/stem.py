"""The first convolutions of a network, which low precision hurts most.

The first filters are differences of large, nearly equal numbers, so rounding their weights costs more than rounding
all other layers together: with VGG16 in bf16 the least cosine to fp32 is 0.99986 with rounded ones, 0.99997 with exact
ones, for half a percent of the arithmetic. With Inception v3, whose second convolution (32 channels to 32) loses most,
the least of 64 images rises from 0.9984 to 0.9998.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from featcache.backbones.tapping import copied

if TYPE_CHECKING:
    from torch import Tensor

# Channels in and out: what is no wider costs little in fp32.
_NARROW = 32


class FullPrecision(nn.Module):
    """A module that autocast does not touch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        # Transformers' networks ask their first convolution for the type of its weight.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = self.inner(images.float())
            return result


class _InHalves(nn.Module):
    """A convolution that is nearly exact where everything is computed in bf16: 16 bits of every factor instead of 8.

    w x is taken as (high + low of w) times (high + low of x), less the product of the two low halves, and all three
    products are one convolution with three times the channels, which accumulates in fp32. Such sums of rounded parts
    are how G. Henry, P. Tang and A. Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
    Higher-Precision Computations" (ARITH 2019), multiply.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        high, low = _halves(convolution.weight.detach())
        self.register_buffer("weight", torch.cat([high, low, high], dim=1))
        self.register_buffer("bias", convolution.bias)
        self._moves: dict[str, Any] = {
            "stride": convolution.stride,
            "padding": convolution.padding,
            "dilation": convolution.dilation,
        }

    def forward(self, images: Tensor) -> Tensor:
        high, low = _halves(images)
        return F.conv2d(torch.cat([high, high, low], dim=1), self.weight, self.bias, **self._moves)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    high = values.to(torch.bfloat16).float()
    return high, values - high


class _QuickStem(FullPrecision):
    """In halves where a CPU computes in bf16, in fp32 everywhere else.

    What costs is not the arithmetic but the output, which fp32 makes twice as large: with VGG16 at 224 this saves 4 %.
    """

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__(inner)
        self.halves = _InHalves(inner)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            result: Tensor = self.halves(images)
            return result
        return super().forward(images)


def with_exact_stem(part: nn.Module) -> nn.Module:
    """Keeps the convolution that sees the pixels, and narrow ones right behind it, exact or nearly so.

    Where narrow ones follow all are computed in fp32: what goes from one to the next would be rounded otherwise.
    """
    convolutions = [(path, module) for path, module in part.named_modules() if isinstance(module, nn.Conv2d)]
    if not convolutions or convolutions[0][1].in_channels != 3:
        return part
    (path, first), *others = convolutions
    behind = list(takewhile(lambda one: max(one[1].in_channels, one[1].out_channels) <= _NARROW, others))
    part.set_submodule(path, (FullPrecision(first) if behind or not _splits(first) else _QuickStem(first)).eval())
    for path, module in behind:
        part.set_submodule(path, FullPrecision(module).eval())
    return part


def in_one_precision(part: nn.Module, precision: str) -> nn.Module:
    """A copy for those who compute everything in one precision and know no autocast: in bf16 its stem is in halves."""
    part = copied(part)
    for path, module in list(part.named_modules()):
        if isinstance(module, FullPrecision):
            part.set_submodule(path, (_halved(module.inner) if precision == "bf16" else module.inner).eval())
    return part


def _halved(inner: nn.Module) -> nn.Module:
    return _InHalves(inner) if isinstance(inner, nn.Conv2d) and _splits(inner) else inner


def _splits(convolution: nn.Conv2d) -> bool:
    # Channels of groups, and padding with anything but zeros, would not line up.
    return convolution.groups == 1 and convolution.padding_mode == "zeros"
