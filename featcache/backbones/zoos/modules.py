"""A module of the caller's own as a backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from featcache.backbones.cutting import cut
from featcache.backbones.loading import checked_network
from featcache.backbones.network import Network
from featcache.backbones.spec import OWN_MODULE
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import Architecture, Tap, wrapped, zoo_of
from featcache.errors import InvalidOption

#: The layer that is what the module itself gives.
OUTPUT = "output"


def from_module(
    module: nn.Module,
    *,
    name: str,
    transform: Transform,
    layers: Sequence[str] = (),
    pool: str | None = None,
) -> Network:
    """One's own network as a backbone.

    Args:
        module: float32 (N, 3, S, S) -> (N, ...). It is copied; yours stays as it is.
        name: A name for it. What identifies its features is its weights and what it computes, not this name.
        transform: From a decoded image to its input.
        layers: Paths of its modules; none for what the module itself gives, as the layer "output".
        pool: One of none, avg.

    Raises:
        InvalidOption: The name is taken, or the output is no tensor with a row an image.
        ExtractionError: The module is no function of one image.
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
        return Architecture(root=wrapped(network), inside="network.", standard={OUTPUT: Tap(module="network")})

    chosen = cut(name, build, transform.image_size, layers, pool, OUTPUT)
    return checked_network(chosen, wrapped(frozen), transform, pool, f"{OWN_MODULE}{name}", None)


def _require_own_name(name: str) -> None:
    from featcache.backbones.zoos.names import full_name

    taken = not name or full_name(name) != name or name == "pixels" or zoo_of(name).prefix != ""
    if taken or name in zoo_of(name).names():
        raise InvalidOption(f"expected a name of your own for the module, got {name!r}")


def _require_module(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InvalidOption(
            f"{name} is a ScriptModule, whose layers cannot be watched", hint="give the nn.Module that it was made from"
        )
    if any(is_lazy(tensor) for tensor in module.parameters()):
        raise InvalidOption(
            f"{name} has lazy modules that were never run", hint="run it once on an image before you hand it in"
        )
