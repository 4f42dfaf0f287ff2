"""Torchvision's classification networks by name, and the way to timm's: what each family calls its last features.

Nothing here loads a weight. A network is built on the meta device: its graph, shapes and the tensors a layer
needs are known at once, whatever its size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from featcache.backbones import timm_networks
from featcache.backbones.transforms import HALF, IMAGENET_MEAN, IMAGENET_STD, Transform
from featcache.errors import UnknownName

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the networks whose names start alike have in common: their default layer and pooling."""

    prefix: str
    layer: str
    pool: str = "none"


# The layer whose output, flattened, is what the network's own classifier is trained on.
_FAMILIES = (
    Family(prefix="alexnet", layer="avgpool"),
    Family(prefix="convnext", layer="avgpool"),
    Family(prefix="densenet", layer="flatten"),
    Family(prefix="efficientnet", layer="avgpool"),
    Family(prefix="googlenet", layer="avgpool"),
    Family(prefix="inception", layer="avgpool"),
    Family(prefix="maxvit", layer="classifier.0"),
    Family(prefix="mnasnet", layer="mean"),
    Family(prefix="mobilenet_v2", layer="flatten"),
    Family(prefix="mobilenet_v3", layer="avgpool"),
    Family(prefix="regnet", layer="avgpool"),
    Family(prefix="resne", layer="avgpool"),
    Family(prefix="shufflenet", layer="mean"),
    # Its classifier is a convolution: the pooled feature map stands in for the last features.
    Family(prefix="squeezenet", layer="features", pool="avg"),
    Family(prefix="swin", layer="avgpool"),
    Family(prefix="vgg", layer="avgpool"),
    Family(prefix="vit", layer="getitem_5"),
    Family(prefix="wide_resnet", layer="avgpool"),
)

# torchvision sets transform_input with its own weights for these two. It undoes ImageNet's mean and std and
# scales to -1..1, which is the same as normalising with 0.5: folded in, so that no flag can be forgotten.
_TRANSFORM_INPUT = ("inception_v3", "googlenet")


@cache
def network_names() -> tuple[str, ...]:
    """The names of torchvision's classification networks, sorted."""
    from torchvision import models

    return tuple(sorted(models.list_models(module=models)))


def check_name(name: str) -> None:
    """Raises UnknownName, with the nearest names, unless torchvision, or timm, has a network called `name`."""
    if timm_networks.is_timm(name):
        timm_networks.check_name(name)
    elif name not in network_names():
        raise UnknownName("backbone", name, [*network_names(), "pixels"], listed_by="featcache backbones")


def family_of(name: str) -> Family:
    """The family of a network; each of timm's is one of its own."""
    check_name(name)
    if timm_networks.is_timm(name):
        return Family(prefix=name, layer=timm_networks.default_layer(name))
    return next(family for family in _FAMILIES if name.startswith(family.prefix))


def weights_enum(name: str) -> Any:
    """Torchvision's enum class of the weights it offers for a network."""
    from torchvision.models import get_model_weights

    return get_model_weights(name)


def preset(name: str, weights: WeightsEnum | None = None) -> Transform:
    """The transform that the weights were evaluated with (`None`: the default ones)."""
    if timm_networks.is_timm(name):
        return timm_networks.preset(name)
    entry = weights if weights is not None else weights_enum(name).DEFAULT
    published = entry.transforms()
    folded = name in _TRANSFORM_INPUT
    return Transform(
        image_size=published.crop_size[0],
        resize="crop",
        resize_size=published.resize_size[0],
        interpolation=published.interpolation.value,
        mean=HALF if folded else tuple(published.mean or IMAGENET_MEAN),
        std=HALF if folded else tuple(published.std or IMAGENET_STD),
    )


def build_empty(name: str) -> nn.Module:
    """The network in eval mode on the meta device: shapes without storage."""
    import torch

    if timm_networks.is_timm(name):
        return timm_networks.build_empty(name)
    try:
        with torch.device("meta"):
            network = _build(name, init_weights=False)
    except NotImplementedError:
        # RegNet computes its widths with tensors while it is built, which the meta device cannot.
        network = _build(name, init_weights=False).to("meta")
    return network.eval().requires_grad_(False)


def build_random(name: str, seed: int) -> nn.Module:
    """The network with its own random initialisation, the same for the same seed."""
    import torch

    if timm_networks.is_timm(name):
        return timm_networks.build_random(name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(name, init_weights=True).eval().requires_grad_(False)


def _build(name: str, **options: Any) -> nn.Module:
    from torchvision.models import get_model

    known: dict[str, Any] = options if name in _TRANSFORM_INPUT else {}
    if name.startswith("vit_"):
        # It is built for images of one size, which is not 224 for every network's default weights.
        known = {"image_size": preset(name).image_size}
    network: nn.Module = get_model(name, weights=None, **known)
    return network


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silences what torchvision says about layers that differ in train mode: only eval mode is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torchvision\.models\.feature_extraction")
        yield
