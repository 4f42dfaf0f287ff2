"""Builds the smallest module that computes the chosen layers of a network.

The reference is `Tapped`: the unchanged network with forward hooks, which stops as soon as the last layer was computed.
If torch.fx can trace the network, `prune` returns the same without unused operations, and with batch norms folded into
convolutions; it is used only if its outputs agree.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from featcache.backbones.probing import ProbedLayer, first_tensor


class _AllRead(Exception):
    """All layers were computed: the rest of the network can be skipped."""


class Tapped(nn.Module):
    """float32 (N, 3, S, S) -> {layer: (N, ...)}: runs a network until all layers are computed.

    It adds hooks to the network, so pass a copy of a caller's module.
    """

    def __init__(self, root: nn.Module, layers: Mapping[str, ProbedLayer]) -> None:
        super().__init__()
        self.root = root
        self._values: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._layers = dict(layers)
        self._hooks: list[RemovableHandle] = []
        self.watch()

    def watch(self) -> None:
        """Add the hooks."""
        modules = dict(self.root.named_modules())
        for name, layer in self._layers.items():
            module = modules[layer.tap.module]
            if layer.tap.side == "input":
                self._hooks.append(module.register_forward_pre_hook(partial(self._before, name)))
            else:
                self._hooks.append(module.register_forward_hook(partial(self._after, name)))

    def release(self) -> None:
        """Remove the hooks."""
        while self._hooks:
            self._hooks.pop().remove()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self._values, self._calls = {}, {}
        with contextlib.suppress(_AllRead):
            self.root(images)
        return {name: self._values[name] for name in self._layers}

    def _before(self, name: str, module: nn.Module, arguments: Any) -> None:
        self._read(name, arguments)

    def _after(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        self._read(name, output)

    def _read(self, name: str, value: Any) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._calls[name] < self._layers[name].calls:
            return
        tensor = first_tensor(value)
        assert tensor is not None
        last = len(self._values) + 1 == len(self._layers)
        # Later operations may change it in place.
        self._values[name] = tensor if last else tensor.clone()
        if last:
            raise _AllRead


def prune(root: nn.Module, layers: Mapping[str, ProbedLayer]) -> fx.GraphModule | None:
    """The traced part of a network that the layers need, batch norms folded; None if torch.fx cannot trace it."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(root)
    except Exception:
        return None
    reads = {name: tracer.reads.get((layer.tap.module, layer.tap.side)) for name, layer in layers.items()}
    nodes = {name: node for name, node in reads.items() if isinstance(node, fx.Node)}
    if len(nodes) < len(reads):
        return None
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    graph.output({name: _protect(graph, node, single=len(nodes) == 1) for name, node in nodes.items()})
    part = fx.GraphModule(root, graph).eval()
    # This also removes in-place operations whose results are unused; therefore the caller compares the outputs.
    part.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    part.recompile()
    part.delete_all_unused_submodules()
    _fold_batch_norms(part)
    return part


def _protect(graph: fx.Graph, node: fx.Node, *, single: bool) -> fx.Node:
    """The node, or a copy of its value if there are several layers: later operations may change it in place."""
    if single:
        return node
    with graph.inserting_after(node):
        return graph.call_function(torch.clone, (node,))


class _Tracer(fx.Tracer):
    """Records the nodes of the inputs and outputs of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[tuple[str, str], object] = {}

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        self.reads[path, "input"] = _first_node(args)
        result = super().call_module(m, forward, args, kwargs)
        self.reads[path, "output"] = _first_node(result)
        return result


def _first_node(value: Any) -> fx.Node | None:
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, list | tuple):
        return next((node for node in map(_first_node, value) if node is not None), None)
    if isinstance(value, dict):
        return _first_node(list(value.values()))
    return None


def _fold_batch_norms(part: fx.GraphModule) -> None:
    """Fold every batch norm into the preceding convolution if nothing else uses the convolution's output.

    In eval mode a batch norm is a scale and a shift per channel, which can be part of the weights: the function is the
    same, with one rounding less per layer.
    """
    modules = dict(part.named_modules())
    uses = Counter(str(node.target) for node in part.graph.nodes if node.op == "call_module")
    for node in list(part.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if uses[str(before.target)] != 1 or uses[str(node.target)] != 1:
            continue
        convolution, norm = modules.get(str(before.target)), modules.get(str(node.target))
        # A subclass of BatchNorm2d may do more.
        if isinstance(convolution, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
            part.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            part.graph.erase_node(node)
    part.delete_all_unused_submodules()
    part.recompile()


def copy_module(part: nn.Module) -> nn.Module:
    """A deep copy in eval mode, whose modules can be moved and replaced."""
    return copy.deepcopy(part).eval()


def channels_last(module: nn.Module) -> nn.Module:
    """Convert the module's convolution weights to channels-last, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        # `Module.to(memory_format=)` refuses modules with tensors of five dimensions. Tensors that a forward method
        # stored in inference mode must not be changed (ConViT's table of positions).
        if tensor.dim() == 4 and not tensor.is_inference():
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


class _InOrder(nn.Module):
    def __init__(self, part: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.part, self.names = part, tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.part(images)
        return tuple(outputs[name] for name in self.names)


def in_order(part: nn.Module, names: Sequence[str]) -> nn.Module:
    """A module that returns the outputs of these layers as a tuple, for converters without support for dicts."""
    return _InOrder(part, names).eval()
