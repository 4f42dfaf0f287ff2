"""Frozen networks: their description, layers, weights, and the programs that compute features.

`describe(options)` describes a backbone, usually without importing torch; `open_network(options)` loads it, and
`Network.on(device)` returns the program that computes. This package does not depend on image files or caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.backbones.network import Network
    from featcache.backbones.transforms import Resize, Transform

__all__ = ["backbone_names", "load_backbone", "preset_transform"]


def backbone_names() -> tuple[str, ...]:
    """The names of the built-in backbones; torch is not imported.

    Returns:
        Torchvision's classification networks, the short names and `pixels`, sorted.
    """
    from featcache.backbones.zoos.names import short_names
    from featcache.backbones.zoos.torchvision_facts import TORCHVISION

    return tuple(sorted([*TORCHVISION, *(short.name for short in short_names()), "pixels"]))


def preset_transform(name: str, *, image_size: int | None = None, resize: Resize = "squash") -> Transform:
    """The transform of a backbone with its default weights; no weights are loaded.

    Args:
        name: A backbone's name.
        image_size: Pixels a side; required for `pixels`; None: the size of the default weights.
        resize: "squash" or "crop".

    Returns:
        The transform from a decoded image to the network's input.

    Raises:
        UnknownName: There is no such backbone.
        InvalidOption: The size is missing for `pixels`, or the preprocessing cannot be expressed as a `Transform`.
        MissingExtra: The package of the backbone is not installed.
    """
    from featcache.backbones.options import BackboneOptions
    from featcache.backbones.zoos import zoo_of
    from featcache.backbones.zoos.names import full_name
    from featcache.backbones.zoos.pixels import pixels_transform

    if name == "pixels":
        return pixels_transform(BackboneOptions(backbone=name, image_size=image_size, resize=resize))
    name = full_name(name)
    zoo_of(name).check(name)
    return zoo_of(name).transform(name).with_size(image_size, resize)


def load_backbone(
    name: str = "vgg16", *, data_dir: str | Path = "data", transform: Transform | None = None, **options: Any
) -> Network:
    """Load a frozen backbone with its weights on the CPU.

    Args:
        name: A torchvision network, a short name, `timm:NAME`, `hf:ORG/MODEL`, `open_clip:NAME` or `pixels`.
        data_dir: The folder of downloaded weights and of descriptions of backbones that were opened before.
        transform: A complete transform, in place of `image_size`, `resize` and `normalize`.
        options: The other fields of `BackboneOptions`: layers, pool, image_size, resize, normalize, weights.

    Returns:
        The network; `network.on(device)` returns the program that computes features.

    Raises:
        UnknownName: There is no such backbone, layer or entry of weights.
        InvalidOption: The options contradict each other or the network.
        MissingExtra: The package of the backbone is not installed.
        WeightsError: The weights are missing, incomplete or of the wrong shape.
        DownloadError: The weights cannot be downloaded.
        ExtractionError: The features of an image depend on other images in the batch or on chance.
    """
    from featcache.backbones.describe import open_network
    from featcache.backbones.options import BackboneOptions

    return open_network(BackboneOptions(backbone=name, **options), data_dir=Path(data_dir), transform=transform)
