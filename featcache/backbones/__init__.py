"""Frozen networks: described once, probed for their layers, loaded with weights whose bytes are known, then placed.

`describe(options)` says what a backbone is, mostly without torch; `open_network(options)` loads it, and
`Network.on(device)` gives the program that computes. Nothing here knows of images on disk or of caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.backbones.network import Network
    from featcache.backbones.transforms import Resize, Transform

__all__ = ["backbone_names", "load_backbone", "preset_transform"]


def backbone_names() -> tuple[str, ...]:
    """Torchvision's classification networks, the short names and `pixels`, sorted; no torch."""
    from featcache.backbones.zoos.names import short_names
    from featcache.backbones.zoos.torchvision_facts import TORCHVISION

    return tuple(sorted([*TORCHVISION, *(short.name for short in short_names()), "pixels"]))


def preset_transform(name: str, *, image_size: int | None = None, resize: Resize = "squash") -> Transform:
    """The transform of a backbone with its default weights, none of which are loaded.

    Args:
        name: A backbone's name.
        image_size: Pixels a side; must be given for `pixels`.
        resize: "squash" or "crop".

    Raises:
        UnknownName, InvalidOption, MissingExtra.
    """
    from featcache.backbones.options import BackboneOptions
    from featcache.backbones.zoos import zoo_of
    from featcache.backbones.zoos.names import full_name
    from featcache.backbones.zoos.pixels import pixels_transform

    if name == "pixels":
        return pixels_transform(BackboneOptions(backbone=name, image_size=image_size, resize=resize))
    name = full_name(name)
    zoo_of(name).check(name)
    return zoo_of(name).transform(name).resized_to(image_size, resize)


def load_backbone(
    name: str = "vgg16", *, data_dir: str | Path = "data", transform: Transform | None = None, **options: Any
) -> Network:
    """A frozen backbone with its weights, on the CPU; `network.on(device)` computes.

    Args:
        name: A torchvision network, a short name, `timm:NAME`, `hf:ORG/MODEL` or `pixels`.
        data_dir: Holds downloaded weights, and descriptions of backbones that were opened before.
        transform: Resolved numbers, in place of `image_size`, `resize` and `normalize`.
        options: The other fields of `BackboneOptions`: layers, pool, image_size, resize, normalize, weights.

    Raises:
        UnknownName, InvalidOption, MissingExtra, WeightsError, DownloadError, ExtractionError.
    """
    from featcache.backbones.describe import open_network
    from featcache.backbones.options import BackboneOptions

    return open_network(BackboneOptions(backbone=name, **options), data_dir=Path(data_dir), transform=transform)
