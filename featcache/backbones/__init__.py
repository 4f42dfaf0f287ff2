"""Frozen networks: by name or one's own, with weights whose bytes are known, cut to the layers asked for.

`load_backbone` is the way in. Nothing here knows of images on disk or of caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featcache.backbones.backbone import Backbone
    from featcache.backbones.transforms import Resize, Transform

__all__ = ["BackboneLayers", "backbone_layers", "backbone_names", "load_backbone", "preset_transform"]


@dataclass(frozen=True, kw_only=True)
class BackboneLayers:
    """The layers of a backbone that can be asked for, in the order they are computed, and the default one."""

    names: tuple[str, ...]
    default: str


def backbone_layers(name: str) -> BackboneLayers:
    """What `--layer` takes for the backbone `name`. Raises UnknownName."""
    if name == "pixels":
        return BackboneLayers(names=("pixels",), default="pixels")
    from featcache.backbones import layers, networks

    default = networks.family_of(name).layer
    return BackboneLayers(names=layers.layer_names(networks.build_empty(name))[1:], default=default)


def backbone_names() -> tuple[str, ...]:
    """Every backbone that can be named, sorted: torchvision's classification networks and `pixels`."""
    from featcache.backbones.facts import TORCHVISION

    return tuple(sorted([*TORCHVISION, "pixels"]))


def preset_transform(name: str, *, image_size: int | None = None, resize: Resize = "squash") -> Transform:
    """The transform of the backbone `name` with its default weights, none of which are loaded.

    `image_size` must be given for `pixels`. Raises UnknownName, InvalidOption.
    """
    if name == "pixels":
        return _pixels_transform(image_size, resize, None)
    from featcache.backbones import networks

    networks.check_name(name)
    return networks.preset(name).resized_to(image_size, resize)


def load_backbone(
    name: str,
    *,
    weights: str | Path = "default",
    layers: Sequence[str] = (),
    pool: str | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
    normalize: str | None = None,
    transform: Transform | None = None,
    weights_dir: Path,
) -> Backbone:
    """The frozen backbone `name`, on the CPU in fp32.

    `layers`: names of layers; empty means the default one. `pool`: "none" or "avg" (over positions); None means
    the backbone's own default. `image_size`: pixels; None means the weights' own, and must be given for `pixels`.
    `transform`: resolved numbers, in place of `image_size`, `resize` and `normalize`. `weights_dir` is where
    downloaded packages lie.

    Raises UnknownName, InvalidOption, WeightsError or DownloadError.
    """
    from featcache.errors import InvalidOption

    if pool not in (None, "none", "avg"):
        raise InvalidOption(f"expected --pool none or avg, got {pool!r}")
    if name == "pixels":
        return _load_pixels(layers, pool, transform or _pixels_transform(image_size, resize, normalize))
    from featcache.backbones import network, networks
    from featcache.backbones.weights import resolve

    networks.check_name(name)
    return network.from_torchvision(
        name,
        resolve(name, weights, weights_dir=weights_dir),
        layers=layers,
        pool=pool,
        image_size=image_size,
        resize=resize,
        normalize=normalize or "weights",
        transform=transform,
    )


def _load_pixels(layers: Sequence[str], pool: str | None, transform: Transform) -> Backbone:
    from featcache.backbones.pixels import Pixels
    from featcache.errors import InvalidOption

    if pool == "avg" or tuple(layers) not in ((), ("pixels",)):
        raise InvalidOption("pixels has one layer, called pixels, and nothing to pool")
    return Pixels(transform)


def _pixels_transform(image_size: int | None, resize: Resize, normalize: str | None) -> Transform:
    from featcache.backbones.transforms import HALF, Transform
    from featcache.errors import InvalidOption

    if image_size is None:
        raise InvalidOption(
            "the images have no common size, so pixels needs one", hint="pass --image-size, for example 32"
        )
    if normalize not in (None, "half"):
        raise InvalidOption(f"pixels has no weights: expected --normalize half, got {normalize!r}")
    return Transform(image_size=image_size, mean=HALF, std=HALF).resized_to(image_size, resize)
