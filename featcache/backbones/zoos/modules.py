"""`from_module`: a torch module of the caller's own as a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from featcache.backbones.cutting import cut
from featcache.backbones.loading import check_network
from featcache.backbones.network import Network
from featcache.backbones.spec import OWN_MODULE
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import Architecture, Tap, wrap, zoo_of
from featcache.errors import InvalidOption

#: The name of the layer for the output of the module itself.
OUTPUT = "output"


def from_module(
    module: nn.Module,
    *,
    name: str,
    transform: Transform,
    layers: Sequence[str] = (),
    pool: str | None = None,
) -> Network:
    """Use your own network as a backbone.

    Args:
        module: float32 (N, 3, S, S) -> (N, ...). It is copied and not changed.
        name: A name for it, which is only shown: a cache identifies the features by the weights and by what the module
            computes.
        transform: The preprocessing from a decoded image to the module's input.
        layers: Paths of its modules; empty for the output of the module itself, which is the layer "output".
        pool: "none" or "avg"; None: no pooling.

    Returns:
        The network, for `extract` or for computing features with `network.on(device)`.

    Raises:
        InvalidOption: The name is taken, or the output is not a tensor with one row per image.
        UnknownName: The module has no such layer.
        ExtractionError: The features of an image depend on other images in the batch or on chance.
    """
    _require_own_name(name)
    _require_module(module, name)
    frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    tensors = [*frozen.parameters(), *frozen.buffers()]
    if any(tensor.dtype in (torch.float16, torch.bfloat16, torch.float64) for tensor in tensors):
        frozen = frozen.float()

    def build(image_size: int) -> Architecture:
        network = copy.deepcopy(frozen)
        if torch.get_default_device().type == "meta":
            network = network.to("meta")
        return Architecture(root=wrap(network), inside="network.", standard={OUTPUT: Tap(module="network")})

    chosen = cut(name, build, transform.image_size, layers, pool, OUTPUT)
    return check_network(chosen, wrap(frozen), transform, pool, f"{OWN_MODULE}{name}", None)


def _require_own_name(name: str) -> None:
    from featcache.backbones.zoos.names import full_name

    taken = not name or full_name(name) != name or name == "pixels" or zoo_of(name).prefix != ""
    if taken or name in zoo_of(name).names():
        raise InvalidOption(f"expected a name of your own for the module, got {name!r}")


def _require_module(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InvalidOption(
            f"{name} is a ScriptModule, whose layers cannot be read", hint="pass the original nn.Module"
        )
    if any(is_lazy(tensor) for tensor in module.parameters()):
        raise InvalidOption(f"{name} has lazy modules that were never run", hint="run it once on an image first")
