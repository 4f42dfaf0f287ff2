"""timm's networks as backbones, called `timm:NAME`: the same promises as torchvision's, from another zoo.

    timm:resnet18                   timm's default weights for it
    timm:resnet18.a1_in1k           those of that tag

A network's default layer is what its own classifier is given. Its transform is timm's configuration resolved into
numbers. Needs the extra `timm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from featcache.backbones.facts import downloaded_by_torch
from featcache.backbones.transforms import Transform
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm:"


def is_timm(name: str) -> bool:
    """Whether a backbone's name means one of timm's."""
    return name.startswith(PREFIX)


@cache
def timm_names() -> tuple[str, ...]:
    """All of them, sorted, without the tags of their weights. Raises MissingExtra."""
    return tuple(sorted(PREFIX + name for name in _timm().list_models()))


def check_name(name: str) -> None:
    """Raises UnknownName with the nearest names, of networks or of weights' tags; MissingExtra."""
    network, _, tag = name.partition(".")
    if network not in timm_names():
        raise UnknownName("backbone", name, timm_names(), listed_by="featcache backbones --timm")
    tags = _tags(network)
    if tag and name not in tags:
        raise UnknownName("weights of timm", name, tags)


def _tags(network: str) -> list[str]:
    return [PREFIX + name for name in _timm().list_pretrained(f"{network.removeprefix(PREFIX)}.*")]


@cache
def default_layer(name: str) -> str:
    """The traced node that the classifier is given."""
    from torch import nn

    from featcache.backbones import layers

    network: Any = build_empty(name)
    classifier = network.get_classifier()
    modules = dict(network.named_modules())
    nodes = layers.layer_nodes(network)
    last = next((place for place, node in enumerate(nodes) if modules.get(node) is classifier), len(nodes))
    # In eval mode these pass on what they are given, and say nothing of what it is.
    silent = (nn.Dropout, nn.Identity)
    return next(node for node in reversed(nodes[:last]) if not isinstance(modules.get(node), silent))


def preset(name: str) -> Transform:
    """What timm's weights were evaluated with. Raises InvalidOption for what featcache does not do."""
    from timm.data import resolve_data_config

    found: Mapping[str, Any] = resolve_data_config({}, model=build_empty(name))
    channels, height, width = found["input_size"]
    if channels != 3 or height != width or found["crop_mode"] != "center":
        raise InvalidOption(
            f"{name} wants {channels} channels of {height}x{width} pixels, cropped by {found['crop_mode']}: expected "
            "squares of 3 channels, cropped in the centre"
        )
    if found["interpolation"] not in ("bilinear", "bicubic"):
        raise InvalidOption(f"{name} wants images resized by {found['interpolation']}: expected bilinear or bicubic")
    return Transform(
        image_size=height,
        resize="crop",
        # timm's rule.
        resize_size=math.floor(height / found["crop_pct"]),
        interpolation=found["interpolation"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
    )


def build_empty(name: str) -> nn.Module:
    """In eval mode on the meta device."""
    import torch

    with torch.device("meta"):
        return _built(name).eval().requires_grad_(False)


def build_random(name: str, seed: int) -> nn.Module:
    """With its own random initialisation, the same for the same seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(name).eval().requires_grad_(False)


def source_of(name: str) -> str:
    """What a cache remembers of the default weights: `timm:timm/resnet18.a1_in1k`."""
    return f"{PREFIX}{_where(name)}"


def download(name: str) -> Mapping[str, Tensor]:
    """The default weights, from the hub or from where it keeps them. Raises DownloadError."""
    where = _where(name)
    try:
        return dict(_built(name, pretrained=True).state_dict())
    except Exception as error:
        # Networks, proxies, tokens and disks: whatever the hub's client raises.
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise DownloadError(
            f"the weights {where} could not be downloaded: {reason}",
            hint="without a network: --weights PATH to a .safetensors or .pth file, or --weights random to try the "
            "path with an untrained network",
        ) from error


def default_weights(name: str) -> str | None:
    """Where the default weights lie: a repository of the hub, or an address; None where timm has none."""
    tags = _tags(name) if "." not in name else [name]
    if not tags:
        return None
    found = _timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    return str(found.hf_hub_id or found.url or name)


def is_downloaded(name: str) -> bool:
    """Whether the default weights are on this machine already."""
    from huggingface_hub import try_to_load_from_cache

    found = _timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    if not found.hf_hub_id:
        return found.url is not None and downloaded_by_torch(found.url.rpartition("/")[2]).is_file()
    files = [found.hf_hub_filename] if found.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return any(isinstance(try_to_load_from_cache(found.hf_hub_id, file), str) for file in files)


def _where(name: str) -> str:
    found = default_weights(name)
    if found is None:
        raise DownloadError(f"timm has no weights for {name}", hint="--weights PATH, or --weights random")
    return found


def _built(name: str, **options: Any) -> nn.Module:
    check_name(name)
    network: nn.Module = _timm().create_model(name.removeprefix(PREFIX), **options)
    return network


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("a backbone of timm's", package="timm", extra="timm") from error
    return timm
