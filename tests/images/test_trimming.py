"""Metadata of any size neither breaks decoding nor takes time; the orientation stays."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from image_files import encode, pixels
from PIL import Image, PngImagePlugin

from featcache.errors import ImageError
from featcache.images import decode
from featcache.images.trimming import HEADER_BYTES, MOST_BLOCKS, trim

PICTURE = Image.fromarray(pixels(3, 20, 30))
MB = 10**6
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes, behind: bool = False) -> bytes:
    """The picture with chunks right after its header, or right before its end."""
    file = encode(PICTURE)
    at = len(file) - 12 if behind else 33
    return file[:at] + b"".join(chunks) + file[at:]


def profile(size: int, *, packable: bool = True) -> bytes:
    return chunk(b"iCCP", b"a profile\0\0" + zlib.compress(bytes(size) if packable else os.urandom(size), 1))


PNG_BALLAST: dict[str, Callable[[], bytes]] = {
    "profile of 2 MB": lambda: profile(2 * MB),
    "profile of 2 MB that does not pack": lambda: profile(2 * MB, packable=False),
    "profile of 20 MB": lambda: profile(20 * MB),
    "text of 20 MB": lambda: chunk(b"tEXt", b"Comment\0" + bytes(20 * MB)),
    "packed text of 20 MB": lambda: chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20 * MB))),
    "packed unicode of 20 MB": lambda: chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(20 * MB))),
    "70 texts of 1 MB": lambda: chunk(b"tEXt", b"Comment\0" + bytes(MB)) * 70,
    "packed XMP of 20 MB": lambda: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(20 * MB))),
    "text packed in an unknown way": lambda: chunk(b"zTXt", b"Comment\0\7abc"),
    "EXIF packed in an unknown way": lambda: chunk(b"zTXt", b"Raw profile type exif\0\7" + zlib.compress(b"abc")),
    "private data of 20 MB": lambda: chunk(b"caBX", bytes(20 * MB)),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("what", PNG_BALLAST)
def test_a_png_with_large_metadata_is_read(what: str, behind: bool) -> None:
    file = png_with(PNG_BALLAST[what](), behind=behind)
    start = time.process_time()
    assert np.array_equal(decode(file, "x"), np.asarray(PICTURE))
    assert time.process_time() - start < 2


def test_a_png_profile_that_is_damaged_does_not_matter() -> None:
    file = png_with(profile(1000)[:-4] + b"evil")
    assert np.array_equal(decode(file, "x"), np.asarray(PICTURE))


def upright() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))


def with_orientation(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    if kind == "eXIf":
        return chunk(b"eXIf", raw.removeprefix(b"Exif\0\0"))
    if kind == "raw profile":
        text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
        return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    if kind == "xmp":
        return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())
    if kind == "large xmp":
        return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode() + b" " * 2 * MB)
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP.encode()))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", ["eXIf", "raw profile", "xmp", "large xmp", "packed xmp"])
def test_the_orientation_of_a_png_stays_when_other_metadata_is_dropped(kind: str, behind: bool) -> None:
    file = png_with(profile(2 * MB), with_orientation(kind), chunk(b"tEXt", b"a\0b"), behind=behind)
    if behind and kind != "eXIf":
        # Pillow also reads metadata after the picture, when it loads it.
        assert Image.open(io.BytesIO(png_with(with_orientation(kind), behind=True))).getexif().get(0x0112) == 6
    assert np.array_equal(decode(file, "x"), upright())


def test_a_png_without_texts_is_not_copied() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    for file in (encode(PICTURE), encode(PICTURE, dpi=(72, 72)), encode(PICTURE, pnginfo=info)):
        assert trim("PNG", file) is file


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_trimming_a_truncated_file_is_still_an_error(kind: str) -> None:
    file = bytearray(FILES[f"{kind} with a comment of 1 MB"]())
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(file)
        for at in rng.integers(8, 2000, 3):
            damaged[at] = rng.integers(256)
        try:
            decode(bytes(damaged[: rng.integers(100, len(file))]), "x")
        except ImageError as error:
            assert error.message.startswith("x: ")


def jpeg_with(*segments: bytes) -> bytes:
    file = encode(PICTURE, "JPEG")
    return file[:2] + b"".join(segments) + file[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def gif_with(*extensions: bytes) -> bytes:
    file = encode(PICTURE.convert("P"), "GIF")
    at = 13 + (3 << (file[10] & 7) + 1)
    return file[:at] + b"".join(extensions) + file[at:]


def comment(size: int, piece: int = 255, label: int = 0xFE) -> bytes:
    return bytes((0x21, label)) + (bytes((piece,)) + b"c" * piece) * (size // piece) + b"\0"


FILES: dict[str, Callable[[], bytes]] = {
    "PNG with a comment of 1 MB": lambda: png_with(chunk(b"tEXt", b"Comment\0" + b"c" * MB)),
    "JPEG with a comment of 1 MB": lambda: jpeg_with(segment(0xFE, b"c" * 60_000) * 17),
    "GIF with a comment of 1 MB": lambda: gif_with(comment(MB)),
    "GIF with a comment of 20 MB": lambda: gif_with(comment(20 * MB)),
    "GIF with a comment of 4 MB in single bytes": lambda: gif_with(comment(4 * MB, 1)),
    "GIF with 50,000 comments": lambda: gif_with(comment(1, 1) * 50_000),
    "GIF with 20 MB of an application's": lambda: gif_with(comment(20 * MB, label=0xFF)),
    "GIF with 20 MB of noughts": lambda: gif_with(bytes(20 * MB)),
    "JPEG with 20 MB of EXIF": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 308),
    "JPEG with a profile of 20 MB": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 308),
    "JPEG with 20 MB of comments": lambda: jpeg_with(segment(0xFE, b"c" * 65_000) * 308),
    "JPEG with 60,000 pieces of EXIF": lambda: jpeg_with(segment(0xE1, b"Exif\0\0abcdefghi") * 60_000),
    "JPEG with 20 MB of noughts": lambda: jpeg_with(segment(0xFE, b"c"), bytes(20 * MB)),
    "JPEG with 20 MB of filling": lambda: jpeg_with(b"\xff" * 20 * MB),
    "TIFF with a profile of 20 MB": lambda: encode(PICTURE, "TIFF", icc_profile=bytes(20 * MB)),
    "TIFF with a description of 20 MB": lambda: encode(PICTURE, "TIFF", description="c" * 20 * MB),
    "WEBP with XMP of 20 MB": lambda: encode(PICTURE, "WEBP", lossless=True, xmp=bytes(20 * MB)),
    "WEBP with a profile of 20 MB": lambda: encode(PICTURE, "WEBP", lossless=True, icc_profile=bytes(20 * MB)),
    "PGM with a million comments": lambda: b"P2 30 20 255\n" + b"#c\n" * MB + b"7 " * 600,
    "PGM with a comment of 20 MB": lambda: b"P2 30 20 255\n#" + b"c" * 20 * MB + b"\n" + b"7 " * 600,
    "PBM with a million comments": lambda: b"P1 30 20\n" + b"#c\r" * MB + b"1 " * 600,
}


@pytest.mark.parametrize("what", FILES)
def test_megabytes_of_metadata_take_no_time(what: str) -> None:
    file = FILES[what]()
    start = time.process_time()
    assert decode(file, "x").shape == (20, 30, 3)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("what", [what for what in FILES if what.startswith(("GIF", "JPEG"))])
def test_the_pixels_are_those_of_the_bare_file(what: str) -> None:
    bare = gif_with() if what.startswith("GIF") else jpeg_with()
    assert np.array_equal(decode(FILES[what](), "x"), decode(bare, "x"))


@pytest.mark.parametrize(
    "file",
    [
        jpeg_with(segment(0xFE, b"c" * 10) * (MOST_BLOCKS + 1)),
        gif_with(comment(1, 1) * (MOST_BLOCKS + 1)),
        jpeg_with(segment(0xEC, b"") * (MOST_BLOCKS + 1)),
    ],
    ids=["JPEG", "GIF", "JPEG, empty"],
)
def test_metadata_in_too_many_pieces_is_an_error(file: bytes) -> None:
    with pytest.raises(ImageError, match=r"^x: damaged (JPEG|GIF) of .*more than 65,536 pieces of metadata"):
        decode(file, "x")


def test_the_orientation_of_a_jpeg_stays_when_other_metadata_is_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    segments = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 20
    turned = jpeg_with(segments, segment(0xE1, exif.tobytes()))
    assert np.array_equal(decode(turned, "x"), np.rot90(decode(jpeg_with(), "x"), -1))
    by_xmp = jpeg_with(segments, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode()))
    assert np.array_equal(decode(by_xmp, "x"), np.rot90(decode(jpeg_with(), "x"), -1))


def test_the_markers_that_define_a_jpegs_colours_stay() -> None:
    file = encode(PICTURE.convert("CMYK"), "JPEG")
    large = file[:2] + segment(0xFE, b"c" * 60_000) * 10 + file[2:]
    assert b"Adobe" in trim("JPEG", large) and len(trim("JPEG", large)) < 100_000
    assert np.array_equal(decode(large, "x"), decode(file, "x"))


def test_a_gifs_transparent_background_stays() -> None:
    # The frame covers only part of the screen: the rest has the transparent colour of the extension before it.
    frame = Image.new("P", (4, 4), 1)
    frame.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    file = encode(frame, "GIF", optimize=False)
    at = file.index(b",\0\0\0\0\4\0\4\0")
    screen, control = struct.pack("<HH", 8, 8), b"!\xf9\4\1\0\0\2\0"
    bare = file[:6] + screen + file[10:at] + control + file[at:]
    large = file[:6] + screen + file[10:at] + comment(MB) + control + comment(MB) + file[at:]
    assert np.array_equal(decode(large, "x"), decode(bare, "x"))
    assert len({tuple(pixel) for pixel in decode(large, "x").reshape(-1, 3).tolist()}) == 2


@pytest.mark.parametrize(
    "start",
    [
        b"P6 #" + b"c" * 20 * MB + b"\n30 20 255\n",
        b"P5 30 20 #" + b"c\n#" * 7 * MB,
        b"P4" + b" " * 20 * MB + b"30 20\n",
    ],
    ids=["one comment", "millions of comments", "spaces"],
)
def test_a_ppm_header_of_megabytes_is_an_error_at_once(start: bytes) -> None:
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(ImageError, match=r"^x: damaged PPM of .* its header is longer than 65,536 bytes"):
        decode(start + bytes(1800), "x")
    assert time.process_time() - begun < 0.5
    assert tracemalloc.get_traced_memory()[1] < 2 * len(start)
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["P6", "P5", "P3"])
def test_a_ppm_with_a_comment_is_read(kind: str) -> None:
    comments = b"# made by hand\n# and kept\r"
    body = b"7 " * 300 * 3 if kind == "P3" else b" " * 300 * 300
    size = b"15 20" if kind == "P3" else b"150 200"
    found = decode(kind.encode() + b"\n" + comments + size + b"\n" + comments + b"255\n" + body, "x")
    assert found.shape == ((20, 15, 3) if kind == "P3" else (200, 150, 3))


def test_a_ppm_header_just_within_the_limit_is_read() -> None:
    words = b"P6 #\n300 200 255\n"
    fitting = words.replace(b"#", b"#" + b"c" * (HEADER_BYTES - len(words)))
    assert decode(fitting + bytes(180_000), "x").shape == (200, 300, 3)
