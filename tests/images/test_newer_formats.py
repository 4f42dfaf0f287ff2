"""AVIF, JPEG 2000 and HEIC: pixels, orientation, and limits of the size."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from image_files import encode, pixels
from PIL import Image, ImageOps

from featcache.errors import ImageError, MissingExtra
from featcache.images import decode, decoding

heif = pytest.importorskip("pillow_heif")

PICTURE = Image.fromarray(pixels(3, 64, 64).repeat(2, axis=1))
LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG2000": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIC": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def write(image: Image.Image, kind: str, **options: Any) -> bytes:
    options = {**LOSSLESS[kind], **options}
    if kind != "HEIC":
        return encode(image, kind, **options)
    file = io.BytesIO()
    heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def exif(orientation: int, *, resolution_unit: int = 2) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x0128] = resolution_unit
    tags[0x0131] = "a camera"
    return tags.tobytes()


def upright(orientation: int) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(encode(PICTURE, "PNG", exif=exif(orientation)))))


def close(found: np.ndarray[Any, Any], expected: Image.Image) -> bool:
    return found.shape == (expected.height, expected.width, 3) and bool(
        np.abs(found.astype(int) - np.asarray(expected.convert("RGB"))).mean() < 2
    )


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pixels_are_decoded(kind: str, mode: str) -> None:
    image = PICTURE.convert(mode)
    assert close(decode(write(image, kind), "x"), image)


@pytest.mark.parametrize("kind", ["JPEG2000", "HEIC"])
def test_lossless_files_are_exact(kind: str) -> None:
    assert np.array_equal(decode(write(PICTURE, kind), "x"), np.asarray(PICTURE))


def test_a_raw_stream_of_jpeg_2000_is_read_as_well() -> None:
    file = write(PICTURE, "JPEG2000", no_jp2=True)
    assert file.startswith(b"\xff\x4f\xff\x51")
    assert np.array_equal(decode(file, "x"), np.asarray(PICTURE))


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_once(kind: str, orientation: int) -> None:
    file = write(PICTURE, kind, exif=exif(orientation))
    assert (b"irot" in file or b"imir" in file) == (orientation != 1)
    assert close(decode(file, "x"), upright(orientation))


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
@pytest.mark.parametrize(("container", "in_exif"), [(6, 3), (1, 6), (8, 1)])
def test_the_orientation_of_the_container_overrides_exif(kind: str, container: int, in_exif: int) -> None:
    # The encoders make EXIF agree with the container, so another tag of the same form is changed to the orientation.
    file = write(PICTURE, kind, exif=exif(container, resolution_unit=in_exif))
    disagreeing = struct.pack(">HHIHH", 0x0128, 3, 1, in_exif, 0)
    assert disagreeing in file
    file = file.replace(struct.pack(">HHIHH", 0x0112, 3, 1, container, 0), struct.pack(">HHIHH", 0x0111, 3, 1, 1, 0))
    file = file.replace(disagreeing, struct.pack(">HHIHH", 0x0112, 3, 1, in_exif, 0))
    assert close(decode(file, "x"), upright(container))


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_an_orientation_in_xmp_is_ignored(kind: str) -> None:
    neutral = XMP.replace(b'"6"', b'"1"')
    file = write(PICTURE, kind, xmp=neutral)
    assert neutral in file
    assert close(decode(file.replace(neutral, XMP), "x"), PICTURE)


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_a_container_with_a_generic_major_brand_is_read(kind: str) -> None:
    file = write(PICTURE, kind)
    assert close(decode(file[:8] + b"mif1" + file[12:], "x"), PICTURE)


def test_an_avif_animation_gives_its_first_picture() -> None:
    file = write(PICTURE, "AVIF", save_all=True, append_images=[PICTURE.rotate(180)])
    assert close(decode(file, "x"), PICTURE)


def test_a_heic_file_gives_its_primary_picture() -> None:
    both = heif.from_pillow(PICTURE.rotate(180))
    both.add_from_pillow(PICTURE)
    file = io.BytesIO()
    both.save(file, primary_index=1, **LOSSLESS["HEIC"])
    assert close(decode(file.getvalue(), "x"), PICTURE)


def test_deep_gray_heic_is_divided_by_256() -> None:
    deep = Image.fromarray(np.array([[0, 0x1200], [0xFF00, 0xFFC0]] * 8, np.uint16))
    found = decode(write(deep, "HEIC"), "x")
    assert found[:2, :, 0].tolist() == [[0, 0x12], [0xFF, 0xFF]]


def huge(kind: str) -> bytes:
    """A file of some hundred bytes whose header declares 20,000 x 20,000 pixels."""
    file = write(PICTURE, kind)
    mark = {"JPEG2000": b"ihdr", "AVIF": b"ispe\0\0\0\0", "HEIC": b"ispe\0\0\0\0"}[kind]
    before, _, after = file.partition(mark)
    side = 20_000 if kind != "AVIF" else 12_000
    return before + mark + struct.pack(">II", side, side) + after[8:]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_huge_declared_size_is_refused_before_anything_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = huge(kind)
    reader = decoding._reader(kind)
    monkeypatch.setattr(reader, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"^x: [12][02],000 x [12][02],000 pixels, at most 89,478,485"):
        decode(file, "x")


def test_a_huge_raw_stream_of_jpeg_2000_is_refused() -> None:
    file = bytearray(write(PICTURE, "JPEG2000", no_jp2=True))
    file[8:16] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(ImageError, match="60,000 x 60,000 pixels"):
        decode(bytes(file), "x")


def test_a_small_header_around_a_huge_stream_is_refused_too() -> None:
    file = write(PICTURE, "JPEG2000")
    at = file.index(b"\xff\x4f\xff\x51") + 8
    with pytest.raises(ImageError, match=r"^x: "):
        decode(file[:at] + struct.pack(">II", 60_000, 60_000) + file[at + 8 :], "x")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_file_cut_anywhere_is_an_image_error_or_the_picture(kind: str) -> None:
    file = write(PICTURE, kind)
    for length in range(12, len(file), 97):
        try:
            found = decode(file[:length], "x")
        except ImageError as error:
            assert error.message.startswith("x: ")
        else:
            assert found.shape == (64, 128, 3)


def test_the_error_for_heic_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding._reader.cache_clear()
    with pytest.raises(MissingExtra, match="needs the package pillow-heif") as caught:
        decode(write(PICTURE, "HEIC"), "x")
    assert caught.value.hint == "pip install 'featcache[heic]'"
    decoding._reader.cache_clear()


@pytest.mark.parametrize(
    ("kind", "imported", "not_imported"),
    [
        ("HEIC", "pillow_heif", "PIL.AvifImagePlugin"),
        ("AVIF", "PIL.AvifImagePlugin", "pillow_heif"),
        ("JPEG2000", "PIL.Jpeg2KImagePlugin", "PIL.PngImagePlugin"),
    ],
)
def test_only_what_a_file_needs_is_imported(kind: str, imported: str, not_imported: str) -> None:
    code = (
        "import sys; from featcache.images.decoding import decode; from PIL import Image\n"
        f"assert {imported!r} not in sys.modules\n"
        "decode(sys.stdin.buffer.read(), 'x')\n"
        f"assert {imported!r} in sys.modules and {not_imported!r} not in sys.modules\n"
        "assert 'HEIF' not in Image.OPEN"
    )
    assert subprocess.run([sys.executable, "-c", code], input=write(PICTURE, kind), check=False).returncode == 0
