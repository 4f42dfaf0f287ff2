"""Augmented views: their parameters, and that they only depend on image, number and seed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from featcache.backbones.augmentation import Augmentation
from featcache.errors import InvalidOption

PLAIN = Augmentation(area=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def a_digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def views(
    augmentation: Augmentation, image: np.ndarray, count: int, seed: int = 0, digest: bytes = b"d" * 32
) -> list[np.ndarray]:
    return [augmentation.view(image, digest=digest, number=number, seed=seed) for number in range(1, count + 1)]


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), number=st.integers(1, 1 << 20), seed=st.integers(-9, 1 << 70)
)
def test_a_view_of_any_image_is_always_the_same(height: int, width: int, number: int, seed: int) -> None:
    image = noise(height, width)
    before = image.copy()
    first, again = (Augmentation().view(image, digest=a_digest("x"), number=number, seed=seed) for _ in range(2))
    assert np.array_equal(first, again) and np.array_equal(image, before)
    assert first.dtype == np.uint8 and first.flags.c_contiguous
    tall, wide, channels = first.shape
    assert 1 <= tall <= height and 1 <= wide <= width and channels == 3


def test_an_augmentation_survives_json() -> None:
    one = Augmentation(area=(0.5, 1.0), flip=0.0)
    assert Augmentation.from_json(json.loads(json.dumps(one.to_json()))) == one
    with pytest.raises(InvalidOption, match="no augmentation of this version"):
        Augmentation.from_json({"hue": 0.1})


def test_the_first_view_is_the_plain_image() -> None:
    image = noise(9, 7)
    assert Augmentation().view(image, digest=b"d" * 32, number=0, seed=3) is image


def test_a_view_depends_on_digest_number_and_seed() -> None:
    image = noise(40, 40)
    seen = [
        Augmentation().view(image, digest=a_digest(name), number=number, seed=seed).tobytes()
        for name in ("a", "b")
        for number in (1, 2)
        for seed in (0, 1)
    ]
    assert len(set(seen)) == 8


def test_the_random_numbers_never_change() -> None:
    # A change here must also change the spec, because otherwise caches would contain two kinds of views.
    image = np.arange(48 * 64 * 3, dtype=np.int64).reshape(48, 64, 3).astype(np.uint8)
    view = Augmentation().view(image, digest=bytes(range(32)), number=1, seed=0)
    assert view.shape == (37, 40, 3)
    assert (
        hashlib.sha256(view.tobytes()).hexdigest() == "69e7ccc12ee042f5b047f9f4748657d8c9ec947a944c639e2c7fd199c68f2c41"
    )


def test_crops_have_an_allowed_area_and_ratio() -> None:
    image = noise(90, 120)
    shapes = np.array([one.shape[:2] for one in views(Augmentation(), image, 400)])
    share, ratio = shapes.prod(axis=1) / (90 * 120), shapes[:, 1] / shapes[:, 0]
    assert 0.345 < share.min() < 0.42 and 0.9 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    assert 0.55 < share.mean() < 0.75


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 300, (10, 13)), (300, 10, (13, 10)), (1, 1, (1, 1))])
def test_an_image_too_long_for_any_crop_is_cropped_at_the_centre(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert {one.shape[:2] for one in views(Augmentation(area=(0.9, 1.0)), noise(height, width), 20)} == {expected}


def test_half_of_the_views_are_mirrored() -> None:
    image = noise(6, 6)
    mirrored = [np.array_equal(one, image[:, ::-1]) for one in views(replace(PLAIN, flip=0.5), image, 400)]
    plain = [np.array_equal(one, image) for one in views(replace(PLAIN, flip=0.5), image, 400)]
    assert sum(mirrored) + sum(plain) == 400 and 160 < sum(mirrored) < 240


@pytest.mark.parametrize(
    ("field", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_colours_change_as_pillows_do(field: str, enhance: type[ImageEnhance.Brightness]) -> None:
    image = noise(24, 24)
    enhancer = enhance(Image.fromarray(image))
    candidates = np.array([np.asarray(enhancer.enhance(factor / 1024)) for factor in range(614, 1435)], np.int64)
    one_colour = Augmentation(**{**PLAIN.to_json(), field: 0.4})
    for view in views(one_colour, image, 12):
        off = np.abs(candidates - view).reshape(len(candidates), -1).max(axis=1)
        # Pillow truncates fractions, and rounds its grey differently.
        assert off.min() <= 2


def test_without_amplitudes_nothing_changes() -> None:
    image = noise(31, 31)
    assert all(np.array_equal(one, image) for one in views(PLAIN, image, 5))


def test_json_contains_all_parameters() -> None:
    assert Augmentation().to_json() == {
        "area": [0.35, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": 0.5,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
    }
