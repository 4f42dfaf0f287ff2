"""Converts the image processor of a model of transformers to a `Transform`.

The numbers are read from the library's image processor. Then one image is processed by both, so that any further
processing (reversed channels, an offset) is detected and refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from featcache.backbones.transforms import Transform
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from featcache.backbones.transforms import Interpolation, Resize

# The processors use Pillow's numbers of filters.
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
# ConvNeXt's processors squash images to this size or a larger one, and crop for smaller sizes.
_SQUASHED_FROM = 384
# Tolerance in levels of 255. Rounding is 1; for odd margins centres differ by a pixel: less than 1 on the ramps.
_MOST_LEVELS = 3.0


def transform_of(published: Any, name: str) -> Transform:
    """The Transform that is equivalent to an image processor of transformers.

    Raises InvalidOption that names what a Transform cannot express.
    """
    side, resize, resize_size = _geometry(published, name)
    transform = Transform(
        image_size=side,
        resize=resize,
        resize_size=resize_size,
        interpolation=_interpolation(published, name),
        mean=_normalization(published, name, "image_mean", 0.0),
        std=_normalization(published, name, "image_std", 1.0),
    )
    _require_same(published, transform, name)
    return transform


def _refuse(name: str, what: str) -> NoReturn:
    raise InvalidOption(f"the image processor of {name} cannot be expressed as a transform: {what}")


def _interpolation(published: Any, name: str) -> Interpolation:
    if published.resample not in _INTERPOLATIONS:
        _refuse(name, f"expected resample 2 (bilinear) or 3 (bicubic), got {published.resample!r}")
    return _INTERPOLATIONS[published.resample]


def _normalization(published: Any, name: str, field: str, without: float) -> tuple[float, float, float]:
    if not published.do_rescale or not math.isclose(published.rescale_factor, 1 / 255, rel_tol=1e-6):
        _refuse(name, f"expected rescale_factor 1/255, got {published.do_rescale and published.rescale_factor!r}")
    if not published.do_normalize:
        return without, without, without
    stated = getattr(published, field)
    numbers = tuple(float(number) for number in (stated if isinstance(stated, (list, tuple)) else ()))
    if len(numbers) != 3:
        _refuse(name, f"expected three numbers as {field}, got {stated!r}")
    return numbers[0], numbers[1], numbers[2]


def _geometry(published: Any, name: str) -> tuple[int, Resize, int | None]:
    """The side of the square in pixels, the mode of resizing, and for a crop the size of the shorter side."""
    if not published.do_resize or getattr(published, "do_pad", None):
        _refuse(name, "expected do_resize true and do_pad false")
    size = {key: value for key, value in dict(published.size).items() if value is not None}
    crop = dict(published.crop_size or {}) if getattr(published, "do_center_crop", None) else {}
    cropped = {key: crop[key] for key in ("height", "width") if crop.get(key)}
    if set(size) == {"height", "width"} and size["height"] == size["width"] and cropped in ({}, size):
        return size["height"], "squash", None
    if set(size) == {"shortest_edge"}:
        shorter = size["shortest_edge"]
        if (share := getattr(published, "crop_pct", None)) is not None and not cropped:
            return (shorter, "squash", None) if shorter >= _SQUASHED_FROM else (shorter, "crop", int(shorter / share))
        if cropped and cropped.get("height") == cropped.get("width") <= shorter:
            return cropped["height"], "crop", shorter
    _refuse(name, f"size {size} with crop_size {cropped or None}")


def _require_same(published: Any, transform: Transform, name: str) -> None:
    """Compare both on an image with ramps: horizontal in red, vertical in green, reversed in blue."""
    import torch

    tall, wide = 2 * (transform.resize_size or transform.image_size), 3 * transform.image_size
    across, down = np.linspace(0, 255, wide)[None, :], np.linspace(0, 255, tall)[:, None]
    ramps = np.stack(np.broadcast_arrays(across, down, 255 - across), axis=-1).astype(np.uint8)
    expected = torch.as_tensor(np.asarray(published(ramps, return_tensors="np")["pixel_values"]))
    transformed = transform.normalize(torch.from_numpy(transform.resize_image(ramps).copy()).permute(2, 0, 1)[None])
    if expected.shape != transformed.shape:
        _refuse(name, f"expected pixels of shape {tuple(transformed.shape)}, got {tuple(expected.shape)}")
    levels = (expected - transformed).abs().amax(dim=(0, 2, 3)) * torch.tensor(transform.std) * 255
    if float(levels.max()) > _MOST_LEVELS:
        _refuse(name, f"{type(published).__name__} changes pixels in a further way, by up to {levels.max():.0f} of 255")
