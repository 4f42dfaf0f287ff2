"""Pillow's resize as matrix products on a device, with exactly the same bytes on every device and in every batch.

Pillow resamples bytes in integers: each output pixel is a sum of input pixels times coefficients of 22 bits, rounded
and clipped to 0..255, along one axis and then along the other. A matrix product in float32 gives exactly the same sums
if nothing is rounded. Therefore each coefficient is written as three digits in base 256: a pixel times a digit is an
integer of at most 15 bits, and sums of these stay below 2^24, which float32 represents exactly, in any order of
summation (and also if the device multiplies in TF32 or bfloat16). The sums of the digits are combined in int32.

A feature does not depend on where its image was resized, so this is not part of a spec.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.backbones.transforms import Framing, Interpolation, Transform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BITS = 22
_BASE, _DIGITS = 256, 3
# For larger images the transfer to the device costs more than resizing on the host; and if a side exceeds this multiple
# of the output's, the sums are no longer exact.
_MOST_AREA, _MOST_SIDE = 8, 64
# Elements of the largest intermediate array of a block of images: 128 MB; a few of these exist at the same time.
_BLOCK_ELEMENTS = 1 << 25
# The number of cached matrices, one per height and width: about 300 KB each for photographs at 224.
_MATRICES = 512

Filter = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Keys' cubic convolution with a = -0.5 (IEEE Trans. ASSP 29(6), 1981), with the same operations as Pillow.
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[Interpolation, tuple[Filter, float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}


def coefficients(
    size_in: int, size_out: int, interpolation: Interpolation, *, first: int = 0, count: int | None = None
) -> npt.NDArray[np.int64]:
    """The weight of each input pixel in each output pixel, in units of 2^-22: int64 (size_in, size_out).

    The filter is scaled to the width of the output's pixels (antialiasing), cut off at the borders and normalised. With
    `first` and `count`, only for `count` output pixels from `first` on.
    """
    function, support = _FILTERS[interpolation]
    scale = size_in / size_out
    widened = max(scale, 1.0)
    outputs = np.arange(first, size_out if count is None else first + count)[:, None]
    centre = (outputs + 0.5) * scale
    start = np.maximum(np.trunc(centre - support * widened + 0.5), 0)
    end = np.minimum(np.trunc(centre + support * widened + 0.5), size_in)
    pixel = start + np.arange(int(np.ceil(support * widened)) * 2 + 1)
    there = pixel < end
    weights = np.where(there, function((pixel - centre + 0.5) * (1.0 / widened)), 0.0)
    # Pillow adds sequentially, and the last bit of a sum depends on the order.
    total = np.cumsum(weights, axis=1)[:, -1:]
    weights = np.divide(weights, total, out=weights, where=total != 0)
    whole = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    matrix = np.zeros((size_in, len(outputs)), np.int64)
    column = np.broadcast_to(outputs - first, pixel.shape)
    matrix[pixel[there].astype(np.int64), column[there]] = whole[there]
    return matrix


def _digits(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """(n, m) integers -> (n, 3, m): digits from -128 to 127, the lowest first; the highest takes the remainder."""
    digits = np.empty((len(matrix), _DIGITS, matrix.shape[1]), np.int8)
    left = matrix
    for place in range(_DIGITS - 1):
        digit = (left + _BASE // 2) % _BASE - _BASE // 2
        digits[:, place] = digit
        left = (left - digit) // _BASE
    digits[:, -1] = left
    return digits


def vertical_first(height: int, width: int, framing: Framing) -> bool:
    """Whether the height is resized before the width: Pillow's rule since version 13, faster for tall images."""
    return height - framing.tall > 2 * max(width - framing.wide, 0)


@dataclass(kw_only=True, eq=False)
class Resampler:
    """Resizes images on `device` by the rules of `transform`."""

    transform: Transform
    device: torch.device
    _matrices: OrderedDict[tuple[int, int, int], Tensor] = field(default_factory=OrderedDict, repr=False)

    def takes(self, height: int, width: int) -> bool:
        """Whether an image of this size is small enough for the device."""
        side = self.transform.image_size
        return height * width <= _MOST_AREA * side * side and max(height, width) <= _MOST_SIDE * side

    def resize(self, images: Tensor, *, cropped: bool = False) -> Tensor:
        """uint8 (n, H, W, 3) on the device -> uint8 (n, S, S, 3), equal to `Transform.resize_image` of each image."""
        import torch

        height, width = images.shape[1:3]
        framing = self.transform.framing(height, width, cropped=cropped)
        side = self.transform.image_size
        widest = _DIGITS * 3 * max(height, side) * max(width, side)
        with torch.inference_mode():
            blocks = torch.split(images, max(1, _BLOCK_ELEMENTS // widest))
            return torch.cat([self._block(block, framing) for block in blocks])

    def _block(self, images: Tensor, framing: Framing) -> Tensor:
        import torch

        height, width = images.shape[1:3]
        planes = images.permute(0, 3, 1, 2).to(torch.float32)
        if vertical_first(height, width, framing):
            planes = self._across(self._down(planes, framing), framing)
        else:
            planes = self._down(self._across(planes, framing), framing)
        return planes.to(torch.uint8).permute(0, 2, 3, 1)

    def _across(self, planes: Tensor, framing: Framing) -> Tensor:
        """(n, 3, H, W) -> (n, 3, H, S): integers from 0 to 255 as float32."""
        side = self.transform.image_size
        matrix = self._matrix(planes.shape[-1], framing.wide, framing.left)
        sums = planes @ matrix.flatten(1)
        return _round(*sums.split_with_sizes([side] * _DIGITS, dim=-1))

    def _down(self, planes: Tensor, framing: Framing) -> Tensor:
        """(n, 3, H, W) -> (n, 3, S, W)."""
        side = self.transform.image_size
        matrix = self._matrix(planes.shape[-2], framing.tall, framing.top)
        sums = matrix.flatten(1).T @ planes
        return _round(*sums.split_with_sizes([side] * _DIGITS, dim=-2))

    def _matrix(self, size_in: int, size_out: int, first: int) -> Tensor:
        """(size_in, 3, S) float32: the digits of the coefficients of the S output pixels from `first` on."""
        import torch

        key = size_in, size_out, first
        if key not in self._matrices:
            side = self.transform.image_size
            whole = coefficients(size_in, size_out, self.transform.interpolation, first=first, count=side)
            self._matrices[key] = torch.from_numpy(_digits(whole)).to(self.device)
            if len(self._matrices) > _MATRICES:
                self._matrices.popitem(last=False)
        self._matrices.move_to_end(key)
        return self._matrices[key].to(torch.float32)


def _round(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """Combine three sums of digits into pixels: float32, 0 to 255."""
    import torch

    sums = (high.to(torch.int32) * _BASE + middle.to(torch.int32)) * _BASE + low.to(torch.int32)
    return ((sums + (1 << (_BITS - 1))) >> _BITS).clamp_(0, 255).to(torch.float32)


def agrees_with_pillow(resampler: Resampler) -> bool:
    """Whether this device and the installed Pillow resize a few images of noise to the same bytes."""
    import torch

    side, noise = resampler.transform.image_size, np.random.default_rng(0)
    # Smaller, larger, wide, and so tall that the height is resized first.
    sizes = (side // 2 + 1, side // 2 + 3), (side + 7, side + 9), (side, 2 * side), (5 * side + 9, 2 * side)
    for height, width in sizes:
        image = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        resized = resampler.resize(torch.from_numpy(image[None]).to(resampler.device))[0]
        if not np.array_equal(resized.cpu().numpy(), resampler.transform.resize_image(image)):
            return False
    return True
