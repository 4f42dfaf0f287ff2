"""`pixels`: a backbone without a network, whose features are the bytes of the resized images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.spec import BackboneSpec, Layer
from featcache.backbones.transforms import HALF, Transform
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.network import Network
    from featcache.backbones.options import BackboneOptions

NAME = "pixels"


def pixels_spec(options: BackboneOptions, transform: Transform | None = None) -> BackboneSpec:
    """The description of `pixels`: uint8, channels first, D = 3 * S * S, value = byte * scale + offset.

    Args:
        options: `image_size` is required; there is one layer and no pooling.
        transform: A complete transform, in place of the options' image size and resize.

    Raises:
        InvalidOption: An option does not apply to pixels.
    """
    if options.pool not in (None, "none") or tuple(options.layers) not in ((), (NAME,)):
        raise InvalidOption("pixels has one layer, called pixels, and no pooling")
    if str(options.weights) != "default":
        raise InvalidOption(f"pixels has no weights, got --weights {options.weights}", hint="leave --weights out")
    transform = transform or pixels_transform(options)
    side = transform.image_size
    return BackboneSpec(
        name=NAME,
        layers=(Layer(name=NAME, shape=(3, side, side)),),
        pool=options.pool,
        transform=transform,
        source=None,
        scaling=(1.0 / (255.0 * transform.std[0]), -transform.mean[0] / transform.std[0]),
    )


def pixels_transform(options: BackboneOptions) -> Transform:
    """The transform of the options. Raises InvalidOption."""
    if options.image_size is None:
        raise InvalidOption(
            "pixels needs a size: the images of a folder or an archive may have several sizes",
            hint="pass --image-size, for example 32",
        )
    if options.normalize not in (None, "half"):
        raise InvalidOption(f"pixels has no weights: expected --normalize half, got {options.normalize!r}")
    return Transform(image_size=options.image_size, mean=HALF, std=HALF).with_size(options.image_size, options.resize)


def pixels_network(spec: BackboneSpec) -> Network:
    """The backbone as a network whose program returns the bytes."""
    from featcache.backbones.network import Network
    from featcache.backbones.program import Program

    class Pixels(Network):
        def __init__(self) -> None:
            self.spec = spec
            self.options = None
            self.files = ()

        def on(
            self, device: str = "cpu", precision: str = "uint8", runner: str = "eager", *, batch_size: int = 32
        ) -> Program:
            """Bytes are copied on the CPU, regardless of the arguments."""
            return Program(
                spec, _flatten, device="cpu", precision="uint8", runner="eager", alone=True, copy=_flatten_array
            )

        def module(self) -> nn.Module:
            from torch import nn

            class Bytes(nn.Module):
                def forward(self, images: Tensor) -> dict[str, Tensor]:
                    return _flatten(images)

            return Bytes()

    return Pixels()


def _flatten(images: Tensor) -> dict[str, Tensor]:
    """uint8 (N, 3, S, S) -> (N, 3 * S * S)."""
    return {NAME: images.flatten(start_dim=1)}


def _flatten_array(images: np.ndarray) -> dict[str, np.ndarray]:
    """The same for arrays: uint8 (N, S, S, 3) -> (N, 3 * S * S), channels first."""
    return {NAME: images.transpose(0, 3, 1, 2).reshape(len(images), -1)}
