"""Lists a network's layers in one forward pass: path, type, output shape, order, and the tensors they depend on.

The pass runs on the meta device, which computes shapes without values. The weights that a value depends on are tracked
operation by operation, including views and in-place operations, so they are exact for every forward method. A second
pass with another image size and batch size shows which dimensions are images and which are positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featcache.backbones.zoos import Architecture, Tap
from featcache.errors import InvalidOption, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A counter of training, which is not used in eval mode.
_NO_WEIGHTS = "num_batches_tracked"
_BATCH, _OTHER_BATCH = 2, 3


@dataclass(frozen=True, kw_only=True)
class ProbedLayer:
    """A layer that can be chosen.

    Args:
        name: A module's path, or a standard name.
        kind: The type of the module whose output it is; "" for the input of a module.
        shape: The shape of the output for a batch of 2 images.
        grown: The dimensions that grow with the image size; None if unknown.
        tensors: Names of the weights and buffers that the value depends on.
        tap: Where the value is read in `Architecture.root`.
        calls: How often the module is called in one pass; the last call gives the value.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    grown: tuple[int, ...] | None
    tensors: tuple[str, ...]
    tap: Tap
    calls: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """All layers of a network in the order of computation, including standard layers."""

    layers: tuple[ProbedLayer, ...]
    #: Modules whose output does not have one row per image (attention windows, ...): they cannot be chosen.
    rowless: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Every layer's name, in order."""
        return tuple(layer.name for layer in self.layers)

    def layer(self, name: str) -> ProbedLayer | None:
        """The layer of that name; None if there is none."""
        return next((layer for layer in self.layers if layer.name == name), None)


def probe(architecture: Architecture, image_size: int, other: Architecture | None, other_size: int) -> Probe:
    """List the layers of a network.

    Args:
        architecture: A network built for `image_size`, preferably on the meta device.
        image_size: Pixels a side.
        other: The same network built for `other_size`; None if it cannot be built.
        other_size: Another size, which shows the dimensions that grow.

    Raises:
        InvalidOption: The network cannot take images of `image_size`.
    """
    seen = _Pass(architecture).run(image_size, _BATCH)
    grown: Mapping[Tap, _Reading] = {}
    if other is not None:
        try:
            grown = _Pass(other).run(other_size, _OTHER_BATCH)
        except InvalidOption:
            grown = {}
    again = grown or _Pass(architecture).run(image_size, _OTHER_BATCH)
    layers, rowless = [], []
    for name, kind, tap in _layer_taps(architecture, seen):
        reading, second = seen[tap], again.get(tap)
        if second is None or len(second.shape) < 2 or (reading.shape[0], second.shape[0]) != (_BATCH, _OTHER_BATCH):
            rowless.append(name)
            continue
        layers.append(
            ProbedLayer(
                name=name,
                kind=kind,
                shape=reading.shape,
                grown=_grown(reading.shape, second.shape) if grown else None,
                tensors=reading.tensors,
                tap=tap,
                calls=reading.calls,
            )
        )
    return Probe(layers=tuple(layers), rowless=tuple(rowless))


def _grown(shape: Sequence[int], other: Sequence[int]) -> tuple[int, ...] | None:
    if len(shape) != len(other):
        return None
    return tuple(dim for dim in range(1, len(shape)) if shape[dim] != other[dim])


def _layer_taps(architecture: Architecture, seen: Mapping[Tap, _Reading]) -> Iterator[tuple[str, str, Tap]]:
    """Each layer's name, type and tap, in the order of computation; a standard layer follows its module."""
    standard: dict[Tap, list[str]] = {}
    for name, tap in architecture.standard.items():
        standard.setdefault(tap, []).append(name)
    for tap, reading in sorted(seen.items(), key=lambda item: item[1].order):
        path = tap.module
        if tap.side == "output" and path.startswith(architecture.inside) and path != architecture.inside:
            name = path.removeprefix(architecture.inside)
            if name and name not in architecture.standard:
                yield name, reading.kind, tap
        for name in standard.get(tap, ()):
            yield name, reading.kind if tap.side == "output" else "", tap


@dataclass(frozen=True, kw_only=True)
class _Reading:
    kind: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    order: int
    calls: int


@dataclass(kw_only=False)
class _Pass:
    """One forward pass that records the inputs and outputs of modules."""

    architecture: Architecture
    _seen: dict[Tap, _Reading] = field(default_factory=dict)
    _order: int = 0

    def run(self, image_size: int, batch: int) -> Mapping[Tap, _Reading]:
        root = self.architecture.root
        self._follow = _Dependencies(root, self.architecture.inside)
        handles = [handle for path, module in root.named_modules() for handle in self._watch(path, module)]
        try:
            with torch.no_grad(), device_of(root), self._follow:
                root(torch.zeros(batch, 3, image_size, image_size))
        except Exception as error:
            raise InvalidOption(
                f"the network cannot take images of {image_size}x{image_size}: {one_line(error)}",
                hint="leave --image-size out, or choose one nearer to the network's own",
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        return self._seen

    def _watch(self, path: str, module: nn.Module) -> Iterator[Any]:
        if any(tap == Tap(module=path, side="input") for tap in self.architecture.standard.values()):
            yield module.register_forward_pre_hook(self._before(path))
        yield module.register_forward_hook(self._after(path))

    def _before(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, arguments: self._note(Tap(module=path, side="input"), module, arguments)

    def _after(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, arguments, output: self._note(Tap(module=path), module, output)

    def _note(self, tap: Tap, module: nn.Module, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is None:
            return
        before = self._seen.get(tap)
        self._order += 1
        self._seen[tap] = _Reading(
            kind=type(module).__name__,
            shape=tuple(tensor.shape),
            tensors=self._follow.names_of(tensor),
            order=self._order,
            calls=1 + (before.calls if before else 0),
        )


class _Dependencies(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Tracks the named tensors from which each value was computed.

    The names are a bit mask per storage, so that views and in-place operations are tracked too.
    """

    def __init__(self, root: nn.Module, inside: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: list[str] = []
        self._masks: dict[int, int] = {}
        for name, tensor in _weights_of(root):
            key = _storage(tensor)
            self._masks[key] = self._masks.get(key, 0) | 1 << len(self._names)
            self._names.append(name.removeprefix(inside))

    def names_of(self, tensor: Tensor) -> tuple[str, ...]:
        """The names a value depends on, sorted."""
        mask = self._masks.get(_storage(tensor), 0)
        return tuple(sorted(name for bit, name in enumerate(self._names) if mask >> bit & 1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [_storage(tensor) for tensor in _tensors((args, kwargs))]
        result = func(*args, **(kwargs or {}))
        mask = 0
        for key in given:
            mask |= self._masks.get(key, 0)
        for tensor in _tensors(result):
            key = _storage(tensor)
            # A new storage may have the address of a freed one.
            self._masks[key] = mask | (self._masks.get(key, 0) if key in given else 0)
        return result


def _weights_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, shared tensors under each of their names."""
    saved = root.state_dict().keys()
    for name, tensor in [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]:
        if name in saved and not name.endswith(_NO_WEIGHTS):
            yield name, tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def device_of(root: nn.Module) -> torch.device:
    """The device of a network; as a context manager, also the device of tensors that its forward method creates."""
    return next((tensor.device for tensor in (*root.parameters(), *root.buffers())), torch.device("cpu"))


def first_tensor(value: Any) -> Tensor | None:
    """The value of a module's output: the tensor itself, or the first tensor in a tuple, list or mapping."""
    return next(_tensors(value), None)
