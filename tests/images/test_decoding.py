"""Every supported format is decoded to the same RGB pixels; everything else is an error with a reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from image_files import encode, pixels
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from featcache.errors import ImageError
from featcache.images import DECODER, decode

PICTURE = Image.fromarray(pixels(3, 20, 30))


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_return_the_same_pixels(kind: str, options: dict[str, Any]) -> None:
    assert np.array_equal(decode(encode(PICTURE, kind, **options), "x"), np.asarray(PICTURE))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_jpeg_decodes_as_in_pillow(options: dict[str, Any]) -> None:
    file = encode(PICTURE, "JPEG", **options)
    assert np.array_equal(decode(file, "x"), np.asarray(Image.open(io.BytesIO(file))))


def test_the_content_decides_not_the_name() -> None:
    assert decode(encode(PICTURE, "PNG"), "photo.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("L", "JPEG"),
        ("1", "PNG"),
        ("1", "PPM"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("P", "BMP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
    ],
)
def test_other_modes_become_rgb_as_pillow_converts_them(mode: str, kind: str) -> None:
    file = encode(PICTURE.convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(file, "x"), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def test_gray_becomes_three_equal_channels() -> None:
    found = decode(encode(PICTURE.convert("L"), "PNG"), "x")
    assert np.array_equal(found, np.stack([np.asarray(PICTURE.convert("L"))] * 3, axis=2))


def test_colours_under_transparency_are_visible() -> None:
    transparent = PICTURE.copy()
    transparent.putalpha(0)
    assert np.array_equal(decode(encode(transparent, "PNG"), "x"), np.asarray(PICTURE))


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_a_palette_with_transparency_shows_its_colours(transparency: int | bytes) -> None:
    palette = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    file = encode(palette, "PNG", transparency=transparency)
    assert np.array_equal(decode(file, "x"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(("mode", "transparency"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_stays_that_colour(mode: str, transparency: Any) -> None:
    plain = PICTURE.convert(mode)
    file = encode(plain, "PNG", transparency=transparency)
    assert np.array_equal(decode(file, "x"), np.asarray(plain.convert("RGB")))


def test_adobes_inverted_cmyk_is_inverted_back() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (255, 0, 0, 0)])
    file = encode(cmyk, "JPEG", quality=100)
    assert b"Adobe" in file
    assert np.abs(decode(file, "x").astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_divided_by_256(kind: str) -> None:
    deep = np.array([[0, 255, 256], [511, 65_280, 65_535]], np.uint16)
    found = decode(encode(Image.fromarray(deep), kind), "x")
    assert found[:, :, 0].tolist() == [[0, 0, 1], [1, 255, 255]]
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


def test_big_endian_16_bit_gray_is_divided_by_256() -> None:
    deep = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0x1234, 0xFF00))
    assert decode(encode(deep, "TIFF"), "x")[0, :, 0].tolist() == [0x12, 0xFF]


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_16_bit_colour_is_divided_by_256() -> None:
    file = png(1, 1, 16, 2, zlib.compress(b"\0" + struct.pack(">3H", 0x01FF, 0x8000, 0xFFFF)))
    assert decode(file, "x").tolist() == [[[0x01, 0x80, 0xFF]]]


@pytest.mark.parametrize(("mode", "kind"), [("I", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF")])
def test_pixels_without_an_8_bit_value_are_refused(mode: str, kind: str) -> None:
    image = Image.new(mode, (3, 3))
    with pytest.raises(ImageError, match=f"a/1.tif: pixels of mode {mode} have no exact 8-bit RGB value"):
        decode(encode(image, kind), "a/1.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    file = encode(PICTURE, kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    found = decode(file, "x")
    assert np.array_equal(found, np.asarray(upright.convert("RGB")))
    assert found.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_is_applied(kind: str) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = encode(PICTURE, kind, xmp=xmp)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    assert np.array_equal(decode(file, "x"), np.asarray(turned))
    assert decode(file, "x").shape == (30, 20, 3)


@pytest.mark.parametrize("orientation", [0, 9, 6000])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(PICTURE, "PNG", exif=exif), "x"), np.asarray(PICTURE))


def test_exif_that_cannot_be_parsed_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise SyntaxError("not a TIFF file")

    file = encode(PICTURE, "PNG", exif=b"Exif\0\0noise")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "getexif", fail)
    assert np.array_equal(decode(file, "x"), np.asarray(PICTURE))


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_lose_the_picture() -> None:
    for length in range(1, 40):
        exif = (b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01\0\x06" + b"\xff" * 40)[:length]
        file = encode(PICTURE, "JPEG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode(file, "x").size == 20 * 30 * 3


def test_an_animation_gives_its_first_picture() -> None:
    frames = [Image.fromarray(pixels(seed)).convert("P", palette=Image.Palette.ADAPTIVE) for seed in range(3)]
    for kind in ("GIF", "TIFF"):
        file = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.array_equal(decode(file, "x"), np.asarray(frames[0].convert("RGB")))
    rgb = [Image.fromarray(pixels(seed)) for seed in range(3)]
    file = encode(rgb[0], "WEBP", save_all=True, append_images=rgb[1:], lossless=True)
    assert np.array_equal(decode(file, "x"), pixels(0))


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_any_pixels_survive_png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    assert np.array_equal(decode(encode(Image.fromarray(image)), "x"), image)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a"]))
def test_any_other_bytes_are_an_image_error(noise: bytes, start: bytes) -> None:
    with pytest.raises(ImageError, match=r"^a\.jpg: "), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode(start + noise, "a.jpg")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty file"),
        (b"this is no image", r"not an image \(first bytes 74 68 69 73 20 69 73 20, as text b'this is no image'\)"),
        (b"<html>", "not an image"),
        (b"\xff\xd8\xff\xe0", "truncated JPEG of 4 bytes"),
        (encode(PICTURE, "JPEG")[:500], "truncated JPEG of 500 bytes"),
        (encode(PICTURE, "JPEG")[:-1], "truncated JPEG"),
        (encode(PICTURE, "PNG")[:500], "truncated PNG of 500 bytes"),
        (encode(PICTURE, "GIF")[:300], "truncated GIF"),
        (encode(PICTURE, "BMP")[:300], "truncated BMP"),
        (encode(PICTURE, "TIFF")[:300], "truncated TIFF"),
        (encode(PICTURE, "PPM")[:300], "truncated PPM"),
        (encode(PICTURE, "WEBP")[:300], "damaged WEBP"),
        (png(3, 3, 8, 2, b"not zlib"), "damaged PNG"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "damaged HEIC of 62 bytes"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "not an image"),
    ],
)
def test_errors_name_the_image_and_the_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^train/cat/0007\.jpg: {reason}"):
        decode(payload, "train/cat/0007.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_anywhere_is_an_error_or_the_whole_picture(kind: str) -> None:
    file = encode(1, kind)
    whole = decode(file, "x")
    for length in range(len(file)):
        try:
            found = decode(file[:length], "x")
        except ImageError:
            continue
        assert np.array_equal(found, whole)


def test_a_huge_declared_size_is_refused_before_anything_is_decoded() -> None:
    bomb = png(50_000, 50_000, 8, 2, zlib.compress(bytes(1000)))
    with pytest.raises(ImageError, match=r"bomb\.png: 50,000 x 50,000 pixels, at most 89,478,485"):
        decode(bomb, "bomb.png")


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM"])
def test_other_huge_pictures_are_refused_too(kind: str) -> None:
    size = 60_000
    headers = {
        "BMP": b"BM"
        + struct.pack("<IHHI", 99, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, size, size, 1, 24, *[0] * 6),
        "GIF": b"GIF89a"
        + struct.pack("<HHBBB", size, size, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, size, size, 0),
        "TIFF": encode(PICTURE, "TIFF").replace(
            struct.pack("<HHIH", 256, 4, 1, 30), struct.pack("<HHIH", 256, 4, 1, size)
        ),
        "PPM": f"P6 {size} {size} 255\n".encode(),
    }
    payload = headers[kind] + bytes(200)
    with pytest.raises(ImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode(payload, "x")


def test_truncated_images_switched_on_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode(encode(PICTURE), "x")


def test_many_threads_decode_the_same_as_one() -> None:
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
    files = [encode(seed, kind) for seed in range(8) for kind in kinds]
    expected = [decode(file, "x") for file in files]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda file: decode(file, "x"), files * 8))
    assert all(np.array_equal(one, expected[n % len(files)]) for n, one in enumerate(found))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays_become_rgb(shape: tuple[int, ...]) -> None:
    given_pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = decode(given_pixels, "x")
    planes = given_pixels.reshape(4, 5, -1)
    expected = np.repeat(planes, 3, axis=2) if planes.shape[2] == 1 else planes[:, :, :3]
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, given_pixels)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 5), np.float32), "expected uint8 pixels, got float32"),
        (np.zeros((4, 5), np.bool_), "expected uint8 pixels, got bool"),
        (np.zeros(5, np.uint8), "expected pixels of shape"),
        (np.zeros((3, 4, 5), np.uint8), "expected pixels of shape"),
        (np.zeros((0, 5), np.uint8), "expected at least one pixel"),
    ],
)
def test_other_arrays_are_refused(array: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"train/00001: {reason}"):
        decode(array, "train/00001")


def test_the_decoder_has_a_name_for_the_spec() -> None:
    assert DECODER == "pillow"


def test_decoding_needs_no_torch() -> None:
    code = "import sys, featcache.images.decoding; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
