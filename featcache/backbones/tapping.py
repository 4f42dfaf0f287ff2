"""From a network and the places where layers are read to the smallest module that computes them.

The module that counts is `Tapped`: the network as it is, watched by forward hooks and left as soon as the last layer
has been read. Where torch.fx can trace the network, `pruned` gives the same without what no layer needs, with batch
norms folded into convolutions; it is taken only where its outputs agree.
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
    """Every layer has been read: what is behind them need not be computed."""


class Tapped(nn.Module):
    """(N, 3, S, S) float32 -> {layer: (N, ...)}: runs a network until every layer has been read.

    The network is changed by hooks: give a copy of a caller's module.
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
        """Put the hooks in place."""
        modules = dict(self.root.named_modules())
        for name, layer in self._layers.items():
            module = modules[layer.tap.module]
            if layer.tap.side == "input":
                self._hooks.append(module.register_forward_pre_hook(partial(self._before, name)))
            else:
                self._hooks.append(module.register_forward_hook(partial(self._after, name)))

    def release(self) -> None:
        """Take the hooks away: the network computes as if it had never been watched."""
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
        # What follows may write into it.
        self._values[name] = tensor if last else tensor.clone()
        if last:
            raise _AllRead


def pruned(root: nn.Module, layers: Mapping[str, ProbedLayer]) -> fx.GraphModule | None:
    """The traced part of a network that the layers need, batch norms folded; None where torch.fx cannot trace it."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(root)
    except Exception:
        return None
    found = {name: tracer.reads.get((layer.tap.module, layer.tap.side)) for name, layer in layers.items()}
    nodes = {name: node for name, node in found.items() if isinstance(node, fx.Node)}
    if len(nodes) < len(found):
        return None
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    graph.output({name: _kept(graph, node, single=len(nodes) == 1) for name, node in nodes.items()})
    part = fx.GraphModule(root, graph).eval()
    # Operations that write in place and whose results are not used are dropped too; the caller compares the outputs.
    part.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    part.recompile()
    part.delete_all_unused_submodules()
    _fold_batch_norms(part)
    return part


def _kept(graph: fx.Graph, node: fx.Node, *, single: bool) -> fx.Node:
    """The node, or a copy of its value: a later operation must not write into what another layer still needs."""
    if single:
        return node
    with graph.inserting_after(node):
        return graph.call_function(torch.clone, (node,))


class _Tracer(fx.Tracer):
    """Records the nodes at which modules' inputs and outputs stand."""

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
    """Folds every batch norm into the convolution it alone reads: the same function, one rounding less a layer.

    In eval mode a batch norm is a scale and a shift per channel, and those belong to the weights.
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


def copied(part: nn.Module) -> nn.Module:
    """A deep copy in eval mode: its modules can be moved and replaced."""
    return copy.deepcopy(part).eval()


def channels_last(module: nn.Module) -> nn.Module:
    """Bring the module's convolution weights into channels-last, in place."""
    for tensor in (*module.parameters(), *module.buffers()):
        # `Module.to(memory_format=)` refuses a module that holds tensors of five dimensions. What a forward method kept
        # in inference mode must not change (ConViT's table of positions).
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
    """A module that gives the outputs of these layers as a tuple, for converters that know no mappings."""
    return _InOrder(part, names).eval()
