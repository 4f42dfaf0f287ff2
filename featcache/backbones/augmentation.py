"""Deterministic augmentation: a view is a pure function of image digest, view number, seed and parameters.

A view has the same bytes at any position in the data, on any machine and after any interruption. Therefore random
numbers come from SHAKE-256 instead of a generator with state, and colours are computed in integers.

View 0 is the unchanged image, as in a cache without views: val and test need it, and rows are shared with such a
cache. Views from 1 on are cropped, flipped and changed in colour before they are resized.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.errors import InvalidOption

Pixels = npt.NDArray[np.uint8]

_ATTEMPTS = 10
# Colour factors are whole multiples of 1 / 1024: 0.6 to 1.4 are 614 to 1434.
_UNIT = 1024
# The weights of red, green and blue in a grey value (ITU-R 601-2), in units of 1 / 65,536.
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The parameters of augmented views, in the units of common training pipelines.

    Args:
        area: Smallest and largest share of the image's area in a crop. The default is fastai's 0.35 instead of the 0.08
            of training from scratch, because no stored view should miss the object.
        ratio: Smallest and largest width / height of a crop.
        flip: The probability of a horizontal flip.
        brightness, contrast, saturation: Each is multiplied by a factor from 1 - x to 1 + x, in this order (timm's
            default is 0.4). The hue is not changed.
    """

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def to_json(self) -> dict[str, Any]:
        """The parameters as JSON values, as they are part of a cache's spec."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises InvalidOption for other values."""
        numbers: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        try:
            return cls(**numbers)
        except TypeError as error:
            raise InvalidOption(f"this is no augmentation of this version of featcache: {error}") from error

    def view(self, image: Pixels, *, digest: bytes, number: int, seed: int) -> Pixels:
        """View `number` of a decoded image: uint8 (H, W, 3) -> uint8 (h, w, 3), C-contiguous.

        `digest` is the SHA-256 of the image's bytes. View 0 is the image itself.
        """
        if number == 0:
            return image
        draws = _draws(digest, number, seed)
        top, left, height, width = self._box(image.shape[0], image.shape[1], draws)
        part = image[top : top + height, left : left + width]
        mirrored = part[:, ::-1] if next(draws) < self.flip else part
        return self._jitter_colours(mirrored, draws)

    def _box(self, height: int, width: int, draws: Iterator[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop, by the rules of torchvision's RandomResizedCrop."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_ATTEMPTS):
            area = height * width * _between(*self.area, next(draws))
            ratio = math.exp(_between(low, high, next(draws)))
            tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < tall <= height and 0 < wide <= width:
                return int(next(draws) * (height - tall + 1)), int(next(draws) * (width - wide + 1)), tall, wide
        return self._middle(height, width)

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        # The largest centre crop with an allowed ratio.
        narrowest, widest = self.ratio
        tall = min(height, max(1, round(width / narrowest)))
        wide = min(width, max(1, round(height * widest)))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def _jitter_colours(self, image: Pixels, draws: Iterator[float]) -> Pixels:
        """Change brightness, contrast and saturation as Pillow's ImageEnhance does, but in integers."""
        brightness, contrast, saturation = (
            round(_UNIT * _between(1 - most, 1 + most, next(draws)))
            for most in (self.brightness, self.contrast, self.saturation)
        )
        levels = np.arange(256, dtype=np.int32)
        lit = _blend(0, levels, brightness)[image]
        grey = _grey(lit.astype(np.int32))
        mean = (2 * int(grey.sum(dtype=np.int64)) + grey.size) // (2 * grey.size)
        clear = _blend(mean, levels, contrast)[lit].astype(np.int32)
        return _blend(_grey(clear), clear, saturation)


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _draws(digest: bytes, number: int, seed: int) -> Iterator[float]:
    """Random numbers in [0, 1) of 53 bits, as many as a view can need at most."""
    text = f"featcache view {number}, seed {seed}, of ".encode() + digest
    count = 4 * _ATTEMPTS + 4
    drawn = np.frombuffer(hashlib.shake_256(text).digest(8 * count), "<u8") >> np.uint64(11)
    return iter((drawn * 2.0**-53).tolist())


def _grey(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Grey values: (H, W, 3) in 0..255 -> (H, W, 1), rounded."""
    red, green, blue = (values[..., channel] * weight for channel, weight in enumerate(_LUMA))
    grey: npt.NDArray[np.int32] = (red + green + blue + (1 << 15)) >> 16
    return grey[..., None]


def _blend(dull: npt.NDArray[np.int32] | int, values: npt.NDArray[np.int32], factor: int) -> Pixels:
    """Interpolate from `dull` (factor 0) to `values` (factor 1,024) and beyond, rounded and clipped to 0..255."""
    blend = (dull * _UNIT + factor * (values - dull) + _UNIT // 2) >> 10
    kept: Pixels = np.clip(blend, 0, 255).astype(np.uint8)
    return kept
