"""Pillow's resize as exportable tensor operations gives the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.backbones.transforms import Transform
from featcache.inference.network import Resizer


def resize_with_torch(transform: Transform, image: np.ndarray) -> np.ndarray:
    """Resize an image (H, W, 3) with the torch module."""
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    return Resizer(transform)(batch)[0].permute(1, 2, 0).numpy()  # type: ignore[no-any-return]


def some_image(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.integers(1, 120),
    margin=st.integers(0, 30),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    resize=st.sampled_from(["squash", "crop"]),
    seed=st.integers(0, 1000),
)
def test_every_byte_equals_pillows(
    height: int, width: int, side: int, margin: int, interpolation: str, resize: str, seed: int
) -> None:
    transform = Transform(
        image_size=side,
        resize=resize,  # type: ignore[arg-type]
        resize_size=side + margin if resize == "crop" else None,
        interpolation=interpolation,  # type: ignore[arg-type]
    )
    image = some_image(height, width, seed)
    assert np.array_equal(resize_with_torch(transform, image), transform.resize_image(image))


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [
        (32, 32, 224),  # both grow
        (300, 100, 128),  # the height shrinks, the width grows: height first
        (200, 120, 100),  # the height by 100, the width by 20: height first
        (140, 120, 100),  # by 40 and by 20: not more than twice as much
        (640, 480, 224),
        (64, 64, 64),  # nothing to do
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_sides_are_resized_in_pillows_order(height: int, width: int, side: int, interpolation: str) -> None:
    transform = Transform(image_size=side, interpolation=interpolation)  # type: ignore[arg-type]
    image = some_image(height, width, 0)
    assert np.array_equal(resize_with_torch(transform, image), transform.resize_image(image))
