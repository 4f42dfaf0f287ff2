"""Chooses the layers of a network, and finds their shapes and the weights they need, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featcache.backbones.pooling import pooling_of
from featcache.backbones.probing import Probe, ProbedLayer, device_of, probe
from featcache.backbones.spec import Layer
from featcache.backbones.tapping import Tapped
from featcache.backbones.zoos import PRE_LOGITS, TOKENS, Architecture, TokenLayout
from featcache.errors import InvalidOption, UnknownName

#: A pooling for all layers, one for each by name, or None for each layer's default.
Pools = str | Mapping[str, str] | None
#: Pixels a side -> the network for images of that size, on the current default device.
Build = Callable[[int], Architecture]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """An architecture on the meta device, and its requested layers."""

    name: str
    architecture: Architecture
    image_size: int
    probed: Mapping[str, ProbedLayer]
    layers: tuple[Layer, ...]
    parameters: int
    flops_per_image: int

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors that any layer depends on, sorted."""
        return _tensors(self.probed)


def _tensors(probed: Mapping[str, ProbedLayer]) -> tuple[str, ...]:
    return tuple(sorted({name for layer in probed.values() for name in layer.tensors}))


def cut(name: str, build: Build, image_size: int, layers: Sequence[str], pool: Pools, default: str = PRE_LOGITS) -> Cut:
    """Probe a network and choose its layers.

    Args:
        name: The backbone's name, for messages.
        build: Pixels a side -> Architecture; called on the meta device.
        image_size: Pixels a side.
        layers: Names; none for the default. `blocks.-1` counts from the end.
        pool: One of POOLINGS, one for each layer by name, or None for each layer's default.
        default: The default layer.

    Raises:
        UnknownName, InvalidOption.
    """
    architecture, probe_result = probe_network(name, build, image_size)
    return choose_layers(name, architecture, probe_result, image_size, layers, pool, default)


def choose_layers(
    name: str,
    architecture: Architecture,
    probe_result: Probe,
    image_size: int,
    layers: Sequence[str] = (),
    pool: Pools = None,
    default: str = PRE_LOGITS,
) -> Cut:
    """Choose the layers of a network that was probed already. Arguments and exceptions: as `cut`."""
    names = _layer_names(name, probe_result, layers, pool, default)
    probed = {layer: _find_layer(name, probe_result, layer) for layer in names}
    return Cut(
        name=name,
        architecture=architecture,
        image_size=image_size,
        probed=probed,
        layers=tuple(layer_of(architecture, probe_result, layer, pool) for layer in names),
        parameters=count_parameters(architecture.root, {architecture.inside + name for name in _tensors(probed)}),
        flops_per_image=_flops(architecture, probed, image_size),
    )


def probe_network(name: str, build: Build, image_size: int) -> tuple[Architecture, Probe]:
    """An architecture and all its layers, on the meta device, or on the CPU if it cannot run there.

    Raises:
        InvalidOption: The network cannot take images of that size.
    """
    last: InvalidOption | None = None
    for make in (build_on_meta, _build_on_cpu):
        architecture = make(build, image_size)
        other: Architecture | None
        try:
            # A second size shows which dimensions grow with the image.
            other = make(build, 2 * image_size)
        except Exception:
            other = None
        try:
            return architecture, probe(architecture, image_size, other, 2 * image_size)
        except InvalidOption as error:
            last = error
    assert last is not None
    raise InvalidOption(last.message.replace("the network", name, 1), hint=last.hint) from last


def _build_on_cpu(build: Build, image_size: int) -> Architecture:
    architecture: Architecture = build(image_size)
    return architecture


def build_on_meta(build: Build, image_size: int) -> Architecture:
    """Build an architecture on the meta device: shapes without storage."""
    try:
        with torch.device("meta"), _Uninitialised():
            architecture: Architecture = build(image_size)
    except (NotImplementedError, RuntimeError):
        # Some constructors compute values with tensors (RegNet its widths), which the meta device does not support.
        architecture = build(image_size)
        architecture.root.to("meta")
    return architecture


class _Uninitialised(TorchFunctionMode):
    """Skips initialisation, which takes seconds and is useless for tensors without storage."""

    _IN_PLACE = frozenset(
        ("normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "sub_", "div_", "fill_", "zero_")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # `nn.init` passes its tensor by name.
        changed = args[0] if args else (kwargs or {}).get("tensor")
        if getattr(func, "__name__", "") in self._IN_PLACE and isinstance(changed, Tensor) and changed.is_meta:
            return changed
        return func(*args, **(kwargs or {}))


def _layer_names(name: str, probe_result: Probe, layers: Sequence[str], pool: Pools, default: str) -> tuple[str, ...]:
    if layers:
        return tuple(dict.fromkeys(_from_the_end(layer, probe_result) for layer in layers))
    tokens = probe_result.layer(TOKENS)
    if pool is not None and tokens is not None and len(tokens.shape) == 3:
        # pre_logits has no positions to pool, so a pooling refers to the tokens.
        return (TOKENS,)
    if probe_result.layer(default) is None:
        raise InvalidOption(
            f"the classifier of {name} does not receive one row per image, so there is no layer {default}",
            hint=f"choose one of `featcache backbones {name}` with --layer",
        )
    return (default,)


def _from_the_end(name: str, probe_result: Probe) -> str:
    """`blocks.-1` -> `blocks.11`: a negative number counts the numbered modules at this place from the end."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.startswith("-") and part[1:].isdecimal():
            before = "".join(f"{one}." for one in parts[:place])
            numbers = {
                int(rest)
                for layer in (*probe_result.names(), *probe_result.rowless)
                if layer.startswith(before) and (rest := layer.removeprefix(before).partition(".")[0]).isdecimal()
            }
            if int(part[1:]) not in range(1, len(numbers) + 1):
                return name
            parts[place] = str(sorted(numbers)[int(part)])
    return ".".join(parts)


def _find_layer(name: str, probe_result: Probe, layer: str) -> ProbedLayer:
    one = probe_result.layer(layer)
    if one is not None:
        return one
    if layer in probe_result.rowless:
        raise InvalidOption(
            f"layer {layer} of {name} does not compute one row per image",
            hint="choose the layer before or after it",
        )
    raise UnknownName(f"layer of {name}", layer, probe_result.names(), listed_by=f"featcache backbones {name}")


def _pool_of(architecture: Architecture, layer: str, probed: ProbedLayer, pool: Pools) -> str | None:
    """The pooling of one layer: the requested one, else the layer's default."""
    if isinstance(pool, Mapping):
        return pool[layer]
    if pool is not None:
        return pool
    if layer in architecture.pooled:
        return architecture.pooled[layer]
    if layer == TOKENS and len(probed.shape) == 3 and architecture.tokens is not None:
        if architecture.tokens.own_pool is None:
            raise InvalidOption(
                "the network reduces its tokens to one vector with its own layers",
                hint="leave --layer out (pre_logits is this vector), or choose --pool avg, cls or none",
            )
        return architecture.tokens.own_pool
    return None


def layer_of(architecture: Architecture, probe_result: Probe, name: str, pool: Pools) -> Layer:
    """A probed layer with its pooling and the shape of a row.

    Raises:
        InvalidOption: The layer does not have this pooling.
    """
    probed, sequence = _find_layer("the network", probe_result, name), probe_result.layer(TOKENS)
    tokens = architecture.tokens
    count = sequence.shape[1] if sequence is not None and len(sequence.shape) == 3 else None
    has_prefix = len(probed.shape) == 3 and probed.shape[1] == count
    pooling = pooling_of(
        _pool_of(architecture, name, probed, pool),
        name,
        probed.shape,
        _positions(probed, tokens, count),
        tokens if has_prefix else None,
    )
    return Layer(name=name, shape=pooling.shape(probed.shape), pooling=pooling)


def _positions(probed: ProbedLayer, tokens: TokenLayout | None, count: int | None) -> tuple[int, ...] | None:
    """The dimensions that hold positions rather than channels: for NCHW (2, 3), NHWC (1, 2), tokens (1,).

    Positions grow with the image size. If the output does not grow (adaptive pooling), the type of the module decides.
    None if positions and channels cannot be distinguished, or if prefix tokens may be among the positions.
    """
    shape, prefix = probed.shape, tokens.prefix if tokens else 0
    if len(shape) == 2:
        return ()
    if len(shape) == 3 and count is not None and shape[1] in (count, count - prefix):
        return (1,)
    if probed.grown is not None and len(probed.grown) == len(shape) - 2 and not (len(shape) == 3 and prefix):
        return probed.grown
    return (2, 3) if probed.kind in _CHANNELS_FIRST and len(shape) == 4 else None


_CHANNELS_FIRST = ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Conv2d", "BatchNorm2d")


def _flops(architecture: Architecture, probed: Mapping[str, ProbedLayer], image_size: int) -> int:
    """Floating-point operations for one image, two per multiply-add; 0 if they cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode

    tapped = Tapped(architecture.root, probed)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), device_of(architecture.root):
            tapped(torch.zeros(1, 3, image_size, image_size))
    except Exception:
        return 0
    finally:
        tapped.release()
    return int(counter.get_total_flops())


def count_parameters(root: nn.Module, names: set[str]) -> int:
    """The number of values of the parameters with these names."""
    return sum(parameter.numel() for name, parameter in root.named_parameters() if name in names)
