"""Augmented views of an image: random in looks, exact in fact.

A view is a function of the image's digest, its number, the seed and the numbers below, and of nothing else: the same
bytes at any position, on any machine, after any interruption. So the draws come from SHAKE-256 instead of a
generator that remembers, and colours are computed in whole numbers.

View 0 is the plain image, as a cache without views has it: val and test need it, and rows are shared with such a
cache. Views from 1 on are cropped, flipped and coloured, before they are resized.
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
# A factor for colours is a whole number of these: 0.6 to 1.4 are 614 to 1434.
_UNIT = 1024
# ITU-R 601-2, in parts of 65,536: how much red, green and blue weigh in a grey.
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a view may look like, in the numbers that training pipelines use.

    `area` is the share of the image that a crop takes (fastai's 0.35 rather than the 0.08 of training from nothing:
    of a few stored views none should miss its object), `ratio` its width over its height. `flip` is the probability
    of a mirror image. `brightness`, `contrast` and `saturation` are multiplied by 1 minus to 1 plus that number, in
    this order (timm's 0.4; colours themselves are not turned).
    """

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def described(self) -> dict[str, Any]:
        """The numbers, as they enter a spec."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """The augmentation that `described` described. Raises InvalidOption for anything else."""
        numbers: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
        }
        try:
            return cls(**numbers)
        except TypeError as error:
            raise InvalidOption(f"this is no augmentation of this version of featcache: {error}") from error

    def view(self, image: Pixels, *, digest: bytes, number: int, seed: int) -> Pixels:
        """View `number` of a decoded image: (H, W, 3) uint8 -> (h, w, 3) uint8, a part of it, C-contiguous.

        `digest` is the image's own. View 0 is the image itself.
        """
        if number == 0:
            return image
        draws = _draws(digest, number, seed)
        top, left, height, width = self._box(image.shape[0], image.shape[1], draws)
        part = image[top : top + height, left : left + width]
        mirrored = part[:, ::-1] if next(draws) < self.flip else part
        return self._coloured(mirrored, draws)

    def _box(self, height: int, width: int, draws: Iterator[float]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop: torchvision's RandomResizedCrop."""
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_ATTEMPTS):
            area = height * width * _between(*self.area, next(draws))
            ratio = math.exp(_between(low, high, next(draws)))
            tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < tall <= height and 0 < wide <= width:
                return int(next(draws) * (height - tall + 1)), int(next(draws) * (width - wide + 1)), tall, wide
        return self._middle(height, width)

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        # The largest part from the centre whose ratio is allowed.
        narrowest, widest = self.ratio
        tall = min(height, max(1, round(width / narrowest)))
        wide = min(width, max(1, round(height * widest)))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def _coloured(self, image: Pixels, draws: Iterator[float]) -> Pixels:
        """Pillow's ImageEnhance, in whole numbers: towards black, towards the mean grey, towards each pixel's grey."""
        brightness, contrast, saturation = (
            round(_UNIT * _between(1 - most, 1 + most, next(draws)))
            for most in (self.brightness, self.contrast, self.saturation)
        )
        levels = np.arange(256, dtype=np.int32)
        lit = _blended(0, levels, brightness)[image]
        grey = _grey(lit.astype(np.int32))
        mean = (2 * int(grey.sum(dtype=np.int64)) + grey.size) // (2 * grey.size)
        clear = _blended(mean, levels, contrast)[lit].astype(np.int32)
        return _blended(_grey(clear), clear, saturation)


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _draws(digest: bytes, number: int, seed: int) -> Iterator[float]:
    """As many numbers in [0, 1) as the most unlucky view needs: 53 bits each."""
    said = f"featcache view {number}, seed {seed}, of ".encode() + digest
    count = 4 * _ATTEMPTS + 4
    drawn = np.frombuffer(hashlib.shake_256(said).digest(8 * count), "<u8") >> np.uint64(11)
    return iter((drawn * 2.0**-53).tolist())


def _grey(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """(H, W, 3) in 0..255 -> (H, W, 1), rounded."""
    red, green, blue = (values[..., channel] * weight for channel, weight in enumerate(_LUMA))
    grey: npt.NDArray[np.int32] = (red + green + blue + (1 << 15)) >> 16
    return grey[..., None]


def _blended(dull: npt.NDArray[np.int32] | int, values: npt.NDArray[np.int32], factor: int) -> Pixels:
    """`dull` for factor 0, `values` for 1,024, and beyond: rounded, and kept in 0..255."""
    blended = (dull * _UNIT + factor * (values - dull) + _UNIT // 2) >> 10
    kept: Pixels = np.clip(blended, 0, 255).astype(np.uint8)
    return kept
