"""Resizing and normalising: the same pixels as torchvision's presets on Pillow images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from featcache.backbones.transforms import Transform
from featcache.errors import InvalidOption

SHAPES = [(32, 32, 3), (480, 640, 3), (301, 97, 3), (64, 65, 3)]


def picture(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squash_is_pillows_resize(shape: tuple[int, int, int], interpolation: str) -> None:
    image = picture(shape)
    transform = Transform(image_size=61, interpolation=interpolation)  # type: ignore[arg-type]
    expected = Image.fromarray(image).resize((61, 61), getattr(Image.Resampling, interpolation.upper()))
    assert np.array_equal(transform.resize_image(image), np.asarray(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_torchvisions_preset(shape: tuple[int, int, int]) -> None:
    image = picture(shape)
    transform = Transform(image_size=48, resize="crop", resize_size=57)
    preset = v2.Compose([v2.Resize(57, InterpolationMode.BILINEAR), v2.CenterCrop(48)])
    assert np.array_equal(transform.resize_image(image), np.asarray(preset(Image.fromarray(image))))


def test_normalisation_is_torchvisions() -> None:
    image = picture((8, 8, 3))
    transform = Transform(image_size=8)
    expected = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(transform.mean, transform.std)]
    )(Image.fromarray(image))
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert torch.allclose(transform.normalize(batch)[0], expected, atol=1e-6)


def test_another_size_keeps_the_crops_proportion() -> None:
    preset = Transform(image_size=224, resize="crop", resize_size=256)
    assert preset.with_size(112, "crop").resize_size == 128
    assert preset.with_size(112, "squash").resize_size is None
    assert preset.with_size(None, "squash").image_size == 224


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"image_size": 8, "resize": "stretch"}, {"image_size": 8, "std": (1.0, 0.0, 1.0)}]
)
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        Transform(**options)  # type: ignore[arg-type]
