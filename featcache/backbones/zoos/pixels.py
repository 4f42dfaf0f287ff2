"""`pixels`: the backbone that computes nothing. It resizes images and stores their bytes."""

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
    """Resized images as uint8, flattened channels first: D = 3 * S * S, value = byte * scale + offset.

    Args:
        options: `image_size` must be given; there is one layer and nothing to pool.
        transform: Resolved numbers, in place of the options' image size and resize.

    Raises:
        InvalidOption: An option that pixels cannot obey.
    """
    if options.pool not in (None, "none") or tuple(options.layers) not in ((), (NAME,)):
        raise InvalidOption("pixels has one layer, called pixels, and nothing to pool")
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
    """The transform that the options mean. Raises InvalidOption."""
    if options.image_size is None:
        raise InvalidOption(
            "the images have no common size, so pixels needs one", hint="pass --image-size, for example 32"
        )
    if options.normalize not in (None, "half"):
        raise InvalidOption(f"pixels has no weights: expected --normalize half, got {options.normalize!r}")
    return Transform(image_size=options.image_size, mean=HALF, std=HALF).resized_to(options.image_size, options.resize)


def pixels_network(spec: BackboneSpec) -> Network:
    """The backbone as a network: its program gives the bytes back."""
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
            """Bytes are copied on the CPU, whatever is asked."""
            return Program(
                spec, _flattened, device="cpu", precision="uint8", runner="eager", alone=True, copy=_flattened_array
            )

        def module(self) -> nn.Module:
            from torch import nn

            class Bytes(nn.Module):
                def forward(self, images: Tensor) -> dict[str, Tensor]:
                    return _flattened(images)

            return Bytes()

    return Pixels()


def _flattened(images: Tensor) -> dict[str, Tensor]:
    """uint8 (N, 3, S, S) -> (N, 3 * S * S)."""
    return {NAME: images.flatten(start_dim=1)}


def _flattened_array(images: np.ndarray) -> dict[str, np.ndarray]:
    """The same of arrays: uint8 (N, S, S, 3) -> (N, 3 * S * S), channels first."""
    return {NAME: images.transpose(0, 3, 1, 2).reshape(len(images), -1)}
