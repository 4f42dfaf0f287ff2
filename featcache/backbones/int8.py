"""Convolutions in 8 bits: weights and activations as bytes, sums in 32 bits, through oneDNN's VNNI kernels.

Weights are rounded to int8 with one scale per output channel, activations to uint8 with one scale and zero point per
tensor, from the range that was observed on some images (static quantisation: Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018). Sums of integers are exact, so a row is the
same in any company. Everything else, the first convolutions too, computes in fp32. Where a convolution's result goes
to nothing but other such convolutions, through ReLU and max-pooling, it stays in bytes.

It needs no package besides torch: the kernels are those that torch.compile lowers quantised graphs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn import functional as F

from featcache.backbones.layers import copied
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor

#: Of each convolution, by its name in the network: the least and the greatest value its input takes; 0 lies between.
Ranges = Mapping[str, tuple[float, float]]

_RELUS = (nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_LEVELS = 255


def convolutions(part: nn.Module, spared: type[nn.Module]) -> dict[str, nn.Conv2d]:
    """Those that can compute in 8 bits, by name: none inside a `spared` module, none that is grouped."""
    inside = tuple(f"{path}." for path, module in part.named_modules() if isinstance(module, spared))
    return {
        path: module
        for path, module in part.named_modules()
        if isinstance(module, nn.Conv2d)
        and not path.startswith(inside)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    }


class Observer:
    """Sees what goes into convolutions while it is open, and keeps the ranges."""

    def __init__(self, observed: Mapping[str, nn.Conv2d]) -> None:
        self.ranges: dict[str, tuple[float, float]] = dict.fromkeys(observed, (0.0, 0.0))
        self._hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: self._see(name, inputs[0]))
            for name, module in observed.items()
        ]

    def _see(self, name: str, values: Tensor) -> None:
        least, greatest = (float(value) for value in values.aminmax())
        before = self.ranges[name]
        self.ranges[name] = min(before[0], least), max(before[1], greatest)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def quantised(part: nn.Module, spared: type[nn.Module], ranges: Ranges) -> nn.Module:
    """A copy of `part`, on the CPU in fp32, whose convolutions compute in 8 bits over these input ranges.

    Raises InvalidOption for a convolution without a range.
    """
    part = copied(part)
    found = convolutions(part, spared)
    if missing := sorted(set(found) - set(ranges)):
        raise InvalidOption(
            f"expected ranges of {len(found)} convolutions, {len(missing)} have none: {missing[0]}, ..."
        )
    for path, module in found.items():
        part.set_submodule(path, _Convolution(module, _Scale.over(*ranges[path])))
    if isinstance(part, fx.GraphModule):
        _fuse_relus(part)
        _keep_bytes(part)
        part.delete_all_unused_submodules()
        part.recompile()
    return part


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """value = (byte - zero) * step"""

    step: float
    zero: int

    @classmethod
    def over(cls, least: float, greatest: float) -> _Scale:
        """The scale whose bytes reach from `least` to `greatest`."""
        # A convolution whose input is always 0 needs a step all the same.
        step = max(greatest - least, 1e-30) / _LEVELS
        return cls(step=step, zero=round(-least / step))

    def bytes_of(self, values: Tensor) -> Tensor:
        return values.mul(1 / self.step).add_(self.zero).round_().clamp_(0, _LEVELS).to(torch.uint8)


_EXACT = _Scale(step=1.0, zero=0)


class _Convolution(nn.Module):
    """(N, C, H, W) float32 or uint8 -> (N, C', H', W') float32, or uint8 where `output` says what a byte means."""

    def __init__(self, exact: nn.Conv2d, scale: _Scale) -> None:
        super().__init__()
        self.input = scale
        self.output: _Scale | None = None
        self.after = "none"
        self.stride, self.padding, self.dilation = list(exact.stride), list(exact.padding), list(exact.dilation)
        weight = exact.weight.detach().float()
        steps = weight.abs().amax((1, 2, 3)).clamp(min=1e-30) / 127
        rounded = (weight / steps.view(-1, 1, 1, 1)).round().to(torch.int8)
        packed = torch.ops.onednn.qconv_prepack(
            rounded, steps, scale.step, scale.zero, self.stride, self.padding, self.dilation, 1, None
        )
        self.packed, self.steps = packed, steps
        self.zeros = torch.zeros(len(steps), dtype=torch.int64)
        self.bias = None if exact.bias is None else exact.bias.detach().float()

    def forward(self, images: Tensor) -> Tensor:
        output, kind = (_EXACT, torch.float32) if self.output is None else (self.output, torch.uint8)
        if images.dtype != torch.uint8:
            images = self.input.bytes_of(images)
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            images, self.input.step, self.input.zero, self.packed, self.steps, self.zeros, self.bias,
            self.stride, self.padding, self.dilation, 1, output.step, output.zero, kind, self.after, [], "",
        )  # fmt: skip
        return result


class _BytePool(nn.Module):
    """Max-pooling without padding; torch's own takes bytes in very small images only."""

    def __init__(self, exact: nn.MaxPool2d) -> None:
        super().__init__()
        self.size, self.stride = _pair(exact.kernel_size), _pair(exact.stride)

    def forward(self, images: Tensor) -> Tensor:
        return _pooled(_pooled(images, 2, self.size[0], self.stride[0]), 3, self.size[1], self.stride[1])


def _pooled(images: Tensor, dim: int, size: int, stride: int) -> Tensor:
    reach = (images.shape[dim] - size) // stride * stride
    shifted = [images.narrow(dim, start, reach + 1) for start in range(size)]
    every = [one[:, :, ::stride] if dim == 2 else one[..., ::stride] for one in shifted]
    result = every[0]
    for other in every[1:]:
        result = torch.maximum(result, other)
    return result


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


# --- the graph ---------------------------------------------------------------------------------------------


def _called(part: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return part.get_submodule(str(node.target)) if node.op == "call_module" else None


def _convolution_nodes(part: fx.GraphModule) -> Iterator[tuple[fx.Node, _Convolution]]:
    calls = Counter(node.target for node in part.graph.nodes)
    for node in list(part.graph.nodes):
        module = _called(part, node)
        # One that is called twice may have different followers each time.
        if isinstance(module, _Convolution) and calls[node.target] == 1:
            yield node, module


def _fuse_relus(part: fx.GraphModule) -> None:
    for node, convolution in _convolution_nodes(part):
        behind = next(iter(node.users)) if len(node.users) == 1 else None
        if behind is not None and _is_relu(part, behind):
            convolution.after = "relu"
            behind.replace_all_uses_with(node)
            part.graph.erase_node(behind)


def _is_relu(part: fx.GraphModule, node: fx.Node) -> bool:
    module = _called(part, node)
    return isinstance(module, nn.ReLU) if module is not None else node.target in _RELUS


def _keep_bytes(part: fx.GraphModule) -> None:
    """Lets convolutions give bytes where nobody but other convolutions, behind pools or not, takes them."""
    for node, convolution in _convolution_nodes(part):
        pools, takers = _behind(part, node)
        scales = {taker.input if isinstance(taker, _Convolution) else None for taker in takers}
        if len(scales) == 1 and None not in scales:
            convolution.output = scales.pop()
            for pool in pools:
                module = _called(part, pool)
                if isinstance(module, nn.MaxPool2d):
                    part.set_submodule(str(pool.target), _BytePool(module))


def _behind(part: fx.GraphModule, node: fx.Node) -> tuple[list[fx.Node], list[nn.Module | None]]:
    """The max-pools behind a node, and whoever takes the values then."""
    pools: list[fx.Node] = []
    takers: list[nn.Module | None] = []
    for user in node.users:
        module = _called(part, user)
        if isinstance(module, nn.MaxPool2d) and _is_plain(module):
            further = _behind(part, user)
            pools += [user, *further[0]]
            takers += further[1]
        else:
            takers.append(module)
    return pools, takers


def _is_plain(pool: nn.MaxPool2d) -> bool:
    return (_pair(pool.padding), _pair(pool.dilation), pool.ceil_mode, pool.return_indices) == (
        (0, 0),
        (1, 1),
        False,
        False,
    )
