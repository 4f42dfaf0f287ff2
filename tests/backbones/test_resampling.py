"""Resizing on a device gives the same bytes as Pillow, for all sizes and in every batch."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.backbones import resampling
from featcache.backbones.resampling import Resampler, agrees_with_pillow, coefficients
from featcache.backbones.transforms import Interpolation, Transform

SIZES = st.integers(1, 90)
INTERPOLATIONS = st.sampled_from(["bilinear", "bicubic"])
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(height: int, width: int, seed: int = 0, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def stripes(height: int, width: int) -> np.ndarray:
    """A black and white checkerboard, where a cubic filter overshoots most."""
    return np.broadcast_to((np.indices((height, width)).sum(axis=0) % 2 * 255)[None, ..., None], (1, height, width, 3))


def on_device(transform: Transform) -> Resampler:
    return Resampler(transform=transform, device=torch.device("cpu"))


def resize_on_device(transform: Transform, images: np.ndarray, **options: bool) -> np.ndarray:
    given = torch.from_numpy(np.ascontiguousarray(images, np.uint8))
    result: np.ndarray = on_device(transform).resize(given, **options).numpy()
    return result


@settings(deadline=None, max_examples=150)
@given(height=SIZES, width=SIZES, side=SIZES, interpolation=INTERPOLATIONS, seed=st.integers(0, 99))
def test_any_size_is_resized_to_any_square_as_by_pillow(
    height: int, width: int, side: int, interpolation: Interpolation, seed: int
) -> None:
    transform = Transform(image_size=side, interpolation=interpolation)
    for images in (noise(height, width, seed), stripes(height, width)):
        picture = Image.fromarray(np.ascontiguousarray(images[0], np.uint8))
        expected = np.asarray(picture.resize((side, side), PILLOW[interpolation]))
        assert np.array_equal(resize_on_device(transform, images)[0], expected)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    side=st.integers(1, 60),
    margin=st.integers(0, 9),
    interpolation=INTERPOLATIONS,
)
def test_crops_from_the_centre_are_those_of_the_host(
    height: int, width: int, side: int, margin: int, interpolation: Interpolation
) -> None:
    transform = Transform(image_size=side, resize="crop", resize_size=side + margin, interpolation=interpolation)
    image = noise(height, width)
    assert np.array_equal(resize_on_device(transform, image)[0], transform.resize_image(image[0]))
    assert np.array_equal(
        resize_on_device(transform, image, cropped=True)[0], transform.resize_image(image[0], cropped=True)
    )


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (480, 640), (640, 480), (1000, 400), (90, 4000), (4000, 90), (1, 500), (224, 37)]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_usual_sizes_are_resized_as_on_the_host(
    height: int, width: int, interpolation: Interpolation, resize: str
) -> None:
    transform = Transform(image_size=224, interpolation=interpolation).with_size(224, "squash")
    if resize == "crop":
        transform = Transform(image_size=224, resize="crop", resize_size=232, interpolation=interpolation)
    image = noise(height, width)
    assert np.array_equal(resize_on_device(transform, image)[0], transform.resize_image(image[0]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [224, 299, 24])
def test_photographs_are_resized_to_the_same_bytes(cifar_zip: Path, interpolation: Interpolation, side: int) -> None:
    with zipfile.ZipFile(cifar_zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:20000:1000]
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]
    images = np.stack([np.asarray(picture) for picture in pictures])
    found = resize_on_device(Transform(image_size=side, interpolation=interpolation), images)
    for picture, row in zip(pictures, found, strict=True):
        assert np.array_equal(row, np.asarray(picture.resize((side, side), PILLOW[interpolation])))


@given(count=st.integers(1, 9), place=st.integers(0, 8), interpolation=INTERPOLATIONS)
def test_an_image_is_resized_equally_in_any_batch(count: int, place: int, interpolation: Interpolation) -> None:
    transform = Transform(image_size=24, interpolation=interpolation)
    images = noise(31, 45, count=count)
    place %= count
    alone = resize_on_device(transform, images[place : place + 1])[0]
    assert np.array_equal(resize_on_device(transform, images)[place], alone)


def test_a_large_batch_is_done_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Transform(image_size=12)
    images = noise(20, 15, count=11)
    whole = resize_on_device(transform, images)
    monkeypatch.setattr(resampling, "_BLOCK_ELEMENTS", 3 * 9 * 20 * 15)
    assert np.array_equal(resize_on_device(transform, images), whole)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_all_sums_are_exact_in_float32(interpolation: Interpolation) -> None:
    for size_in, size_out in ((64 * 224, 224), (64 * 24, 24), (32, 224), (500, 299)):
        digits = np.abs(resampling._digits(coefficients(size_in, size_out, interpolation)).astype(np.int64))
        assert 255 * digits.sum(axis=0).max() < 2**24
        # The largest factors that TF32 and bfloat16 multiply exactly.
        assert digits.max() <= 128


@given(size_in=st.integers(1, 300), size_out=st.integers(1, 300), interpolation=INTERPOLATIONS)
def test_digits_are_the_coefficients(size_in: int, size_out: int, interpolation: Interpolation) -> None:
    whole = coefficients(size_in, size_out, interpolation)
    digits = resampling._digits(whole).astype(np.int64)
    assert np.array_equal(digits[:, 0] + 256 * digits[:, 1] + 65536 * digits[:, 2], whole)
    # They add up to one, but for the rounding of each.
    assert np.abs(whole.sum(axis=0) - (1 << 22)).max() <= np.count_nonzero(whole, axis=0).max()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_device_that_multiplies_coarsely_gives_the_same_bytes(precision: str) -> None:
    transform, image = Transform(image_size=40, interpolation="bicubic"), noise(70, 33)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert np.array_equal(resize_on_device(transform, image)[0], transform.resize_image(image[0]))
    finally:
        torch.set_float32_matmul_precision(before)


def test_sums_may_be_taken_in_bfloat16_products() -> None:
    # The products themselves: bytes and digits are both exact in bfloat16.
    digits = torch.from_numpy(resampling._digits(coefficients(70, 40, "bicubic"))).float()
    values = torch.arange(256.0)
    assert torch.equal(digits.to(torch.bfloat16).float(), digits)
    assert torch.equal(values.to(torch.bfloat16).float(), values)


def test_matrices_are_kept_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_MATRICES", 20)
    resampler = on_device(Transform(image_size=8))
    for width in range(1, 40):
        resampler.resize(torch.zeros(1, 9, width, 3, dtype=torch.uint8))
    assert len(resampler._matrices) == 20
    assert (9, 8, 0) in resampler._matrices


@pytest.mark.parametrize(
    ("height", "width", "takes"),
    [(32, 32, True), (480, 640, True), (3000, 4000, False), (1, 20_000, False), (10, 14_336, True)],
)
def test_huge_images_are_left_to_the_host(height: int, width: int, takes: bool) -> None:
    assert on_device(Transform(image_size=224)).takes(height, width) is takes


@pytest.mark.parametrize("side", [1, 2, 31, 224])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_installed_pillow_is_agreed_with(side: int, resize: str) -> None:
    transform = Transform(image_size=side).with_size(side, "squash")
    if resize == "crop":
        transform = Transform(image_size=side, resize="crop", resize_size=side + 3, interpolation="bicubic")
    assert agrees_with_pillow(on_device(transform))


def test_a_pillow_that_resizes_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "vertical_first", lambda height, width, framing: True)
    assert not agrees_with_pillow(on_device(Transform(image_size=32)))
