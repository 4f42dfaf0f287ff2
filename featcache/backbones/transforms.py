"""`Transform`: the deterministic preprocessing of a backbone, with all numbers resolved.

It has two parts. `Transform.resize_image` resizes one decoded image to the backbone's size, with Pillow on the host, in
the decoding threads: the notebook and torchvision's presets do the same, and it releases the GIL.
`Transform.normalize` converts a batch of bytes to the network's input on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from torch import Tensor

Resize = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
RESIZER = "pillow"


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Resize to `tall` x `wide` pixels, then take the square at `top`, `left`."""

    tall: int
    wide: int
    top: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Transform:
    """The preprocessing from a decoded image to the network's input: value = (byte / 255 - mean) / std.

    Antialiasing is always on, as in Pillow.

    Args:
        image_size: S, pixels a side of the network's input.
        resize: "squash" resizes to S x S pixels and ignores the aspect ratio; "crop" resizes the shorter side to
            `resize_size` pixels and takes the centre S x S pixels.
        resize_size: Pixels of the shorter side before a crop; None: `image_size`.
        interpolation: "bilinear" or "bicubic".
        mean, std: Mean and standard deviation of red, green and blue, for bytes scaled to 0..1.
    """

    image_size: int
    resize: Resize = "squash"
    resize_size: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise InvalidOption(f"expected an image size of at least 1 pixel, got {self.image_size}")
        if self.resize not in ("squash", "crop"):
            raise InvalidOption(f"expected resize squash or crop, got {self.resize!r}")
        if min(self.std) <= 0:
            raise InvalidOption(f"expected a std above 0 in every channel, got {self.std}")

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON values, as they are part of a cache's spec."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "resizer": RESIZER}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Transform:
        """The inverse of `to_json`. Raises InvalidOption for other values."""
        numbers: dict[str, Any] = {
            key: tuple(value) if key in ("mean", "std") else value for key, value in values.items()
        }
        resizer = numbers.pop("resizer", None)
        if resizer != RESIZER:
            raise InvalidOption(f"expected images resized by {RESIZER}, got {resizer!r}", hint="extract again")
        try:
            return cls(**numbers)
        except TypeError as error:
            raise InvalidOption(f"this is no transform of this version of featcache: {error}") from error

    def resize_image(self, image: np.ndarray, *, cropped: bool = False) -> np.ndarray:
        """Resize one image: uint8 (H, W, 3) -> uint8 (S, S, 3), with S = `image_size`.

        `cropped`: the image was already cropped, so it is squashed regardless of `resize`.
        """
        side = self.image_size
        framing = self.framing(*image.shape[:2], cropped=cropped)
        if image.shape[:2] == (framing.tall, framing.wide):
            resized = image
        else:
            size = (framing.wide, framing.tall)
            resized = np.asarray(Image.fromarray(image).resize(size, _FILTERS[self.interpolation]))
        return resized[framing.top : framing.top + side, framing.left : framing.left + side]

    def framing(self, height: int, width: int, *, cropped: bool = False) -> Framing:
        """The size to which an image of `height` x `width` pixels is resized, and the crop."""
        side = self.image_size
        if cropped or self.resize == "squash":
            return Framing(tall=side, wide=side, top=0, left=0)
        # torchvision's rules: the longer side is truncated, and the offset of the crop is rounded.
        target = self.resize_size or side
        tall, wide = max(target, int(target * height / width)), max(target, int(target * width / height))
        if tall < side or wide < side:
            raise InvalidOption(f"cannot crop {side}x{side} out of {tall}x{wide} pixels")
        return Framing(tall=tall, wide=wide, top=round((tall - side) / 2.0), left=round((wide - side) / 2.0))

    def normalize(self, batch: Tensor) -> Tensor:
        """Normalise a batch on its device: uint8 (N, 3, S, S) -> float32 (N, 3, S, S)."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1)
        return batch.to(torch.float32).div_(255.0).sub_(mean).div_(std)

    def with_size(self, image_size: int | None, resize: Resize) -> Transform:
        """This transform with another image size and mode; a crop keeps its proportion."""
        size = image_size or self.image_size
        margin = (self.resize_size or self.image_size) / self.image_size
        return replace(
            self,
            image_size=size,
            resize=resize,
            resize_size=round(size * margin) if resize == "crop" else None,
        )
