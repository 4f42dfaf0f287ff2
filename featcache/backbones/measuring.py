"""What a backbone takes, gives and costs, measured: a forward pass without storage, before any weight is loaded."""

from __future__ import annotations

from featcache.backbones import layers, networks
from featcache.backbones.facts import Costs
from featcache.backbones.network import count_flops


def measured(name: str) -> Costs:
    """The default layer of one of torchvision's or timm's networks, at its weights' own size; about a second.

    Raises UnknownName, MissingExtra, and InvalidOption for a network that wants no square images of three channels.
    """
    family, size = networks.family_of(name), networks.preset(name).image_size
    empty = networks.build_empty(name)
    part = layers.cut(empty, name, [family.layer])
    (layer,) = layers.measure(empty, part, name, [family.layer], family.pool, size)
    return Costs(
        image_size=size,
        feature_dim=layer.feature_dim,
        parameters=sum(parameter.numel() for parameter in part.parameters()),
        gflops=round(count_flops(part, size) / 1e9, 2),
    )
