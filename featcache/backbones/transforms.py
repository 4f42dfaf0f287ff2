"""The deterministic preprocessing in front of a backbone, as resolved numbers.

Two halves: `Transform.resize` brings one decoded image to the backbone's size (Pillow, on the host, in the
decoding threads: it is what the notebook and torchvision's presets do, and it releases the GIL), and
`Transform.normalize` turns a batch of bytes into the network's input on the device.
"""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class Transform:
    """From a decoded image to the network's input: value = (byte / 255 - mean) / std.

    `resize="squash"` goes straight to `image_size` x `image_size` pixels; `"crop"` brings the shorter side to
    `resize_size` and takes the centre. `antialias` is always on, as in Pillow.
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

    def described(self) -> dict[str, Any]:
        """The resolved numbers, as they enter a spec."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "resizer": "pillow"}

    def resize_image(self, image: np.ndarray, *, cropped: bool = False) -> np.ndarray:
        """(H, W, 3) uint8 -> (S, S, 3) uint8, with S = `image_size`.

        `cropped`: the image is a part that was chosen already, and is squashed whatever `resize` says.
        """
        side = self.image_size
        squash = cropped or self.resize == "squash"
        if image.shape[:2] == (side, side) and squash:
            return image
        picture = Image.fromarray(image)
        resampling = _FILTERS[self.interpolation]
        if squash:
            return np.asarray(picture.resize((side, side), resampling))
        return _centre(np.asarray(picture.resize(self._shorter_side(picture.size), resampling)), side)

    def _shorter_side(self, size: tuple[int, int]) -> tuple[int, int]:
        # torchvision's rule: the longer side is truncated, not rounded.
        width, height = size
        target = self.resize_size or self.image_size
        if width <= height:
            return target, int(target * height / width)
        return int(target * width / height), target

    def normalize(self, batch: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> the same shape in float32, normalised, on the batch's device."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1)
        return batch.to(torch.float32).div_(255.0).sub_(mean).div_(std)

    def resized_to(self, image_size: int | None, resize: Resize) -> Transform:
        """This transform at another size; the crop keeps its proportion."""
        size = image_size or self.image_size
        margin = (self.resize_size or self.image_size) / self.image_size
        return replace(
            self,
            image_size=size,
            resize=resize,
            resize_size=round(size * margin) if resize == "crop" else None,
        )


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    if height < side or width < side:
        raise InvalidOption(f"cannot crop {side}x{side} out of {height}x{width} pixels")
    # torchvision's rounding, so that the crop is the same one.
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return image[top : top + side, left : left + side]
