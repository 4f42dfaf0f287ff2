"""Gray of more than 8 bits decodes like the same picture of 8 bits, in every format."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from featcache.errors import ImageError
from featcache.images import decode
from featcache.images.decoding import to_rgb

VALUES = [0, 1, 15, 16, 255, 256, 257, 2047, 2048, 4079, 4080, 4095]
"""Values of 12 bits; four rows of three pixels."""


def tiff(values: list[int], bits: int, *, order: str = "<", photometric: int | None = 1, packed: bool = False) -> bytes:
    """A TIFF of three columns, its rows padded to whole bytes; `packed` by deflate."""
    rows = [values[at : at + 3] for at in range(0, len(values), 3)]
    data = b"".join(_row(row, bits, order) for row in rows)
    data = zlib.compress(data) if packed else data
    tags = {256: 3, 257: len(rows), 258: bits, 259: 8 if packed else 1, 273: 8, 277: 1, 278: len(rows), 279: len(data)}
    if photometric is not None:
        tags[262] = photometric
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 3, 1) + struct.pack(f"{order}HH", value, 0)
        for tag, value in sorted(tags.items())
    )
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return ({"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))) + data + directory


def _row(values: list[int], bits: int, order: str) -> bytes:
    if bits in (8, 16):
        return struct.pack(f"{order}{len(values)}{'B' if bits == 8 else 'H'}", *values)
    text = "".join(f"{value:0{bits}b}" for value in values)
    return int(text.ljust(-len(text) % 8 + len(text), "0"), 2).to_bytes((len(text) + 7) // 8, "big")


def gray(file: bytes) -> list[int]:
    """The gray values of the picture, row by row; fails if its channels differ."""
    found = decode(file, "x")
    assert np.array_equal(found[:, :, 0], found[:, :, 1]) and np.array_equal(found[:, :, 0], found[:, :, 2])
    return [int(value) for value in found[:, :, 0].ravel()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [1, 0, None])
@pytest.mark.parametrize("bits", [16, 12])
def test_deep_tiffs_decode_like_8_bit_ones(bits: int, photometric: int | None, order: str, packed: bool) -> None:
    values = [value << 4 | value >> 8 for value in VALUES] if bits == 16 else VALUES
    shallow = tiff([value >> 4 for value in VALUES], 8, order=order, photometric=photometric)
    deep = tiff(values, bits, order=order, photometric=photometric, packed=packed)
    assert gray(deep) == gray(shallow)
    assert gray(deep) == [value >> 4 if photometric else 255 - (value >> 4) for value in VALUES]


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_16_bit_value_is_divided_by_256_whichever_end_is_white(order: str) -> None:
    values = [*range(0, 65_536, 37), 65_535]
    values += [0] * (-len(values) % 3)
    assert gray(tiff(values, 16, order=order)) == [value // 256 for value in values]
    assert gray(tiff(values, 16, order=order, photometric=0)) == [(65_535 - value) // 256 for value in values]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("most", [256, 1000, 1023, 4095, 16_383, 65_534, 65_535])
def test_a_pgms_maximum_is_white_and_half_of_it_gray(most: int, plain: bool) -> None:
    values = [0, most // 2, most]
    if plain:
        file = f"P2\n3 1\n{most}\n{' '.join(map(str, values))}\n".encode()
    else:
        file = f"P5\n3 1\n{most}\n".encode() + struct.pack(">3H", *values)
    black, middle, white = gray(file)
    assert (black, white) == (0, 255) and middle in (127, 128)


@pytest.mark.parametrize("plain", [False, True])
def test_a_12_bit_pgm_decodes_like_an_8_bit_one(plain: bool) -> None:
    text = " ".join(map(str, VALUES)).encode()
    body = text if plain else struct.pack(f">{len(VALUES)}H", *VALUES)
    assert gray((b"P2" if plain else b"P5") + b"\n3 4\n4095\n" + body) == [value >> 4 for value in VALUES]


def test_a_16_bit_pgm_is_divided_by_256() -> None:
    assert gray(b"P5\n3 1\n65535\n" + struct.pack(">3H", 0x1234, 0x00FF, 0xFF00)) == [0x12, 0, 0xFF]


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}])
def test_16_bit_jpeg_2000_is_divided_by_256(options: dict[str, bool]) -> None:
    deep = np.array([[0, 255, 256], [0x1234, 0xFF00, 65_535]], np.uint16)
    assert gray(encode(Image.fromarray(deep), "JPEG2000", **options)) == [0, 0, 1, 0x12, 0xFF, 255]


@pytest.mark.parametrize("bits", [9, 10, 12, 15])
def test_jpeg_2000_of_fewer_bits_is_widened(bits: int) -> None:
    # Pillow writes 16 bits. The stream has differences from the middle value, so fewer bits only change the header.
    values = [0, 3, 1 << (bits - 1), (1 << bits) - 1]
    shift = (1 << 15) - (1 << (bits - 1))
    wide = Image.fromarray(np.array([values], np.uint16) + np.uint16(shift))
    file = bytearray(encode(wide, "JPEG2000", no_jp2=True))
    assert file[42] == 16 - 1
    file[42] = bits - 1
    assert gray(bytes(file)) == [value >> (bits - 8) for value in values]


@pytest.mark.parametrize(("mode", "kind"), [("I", "TIFF"), ("F", "TIFF"), ("F", "PPM")])
def test_32_bit_integers_and_floats_stay_refused(mode: str, kind: str) -> None:
    with pytest.raises(ImageError, match=r"^x: (pixels of mode [IF] have no exact 8-bit RGB value|not an image)"):
        decode(encode(Image.new(mode, (3, 3), 7), kind), "x")


def test_signed_16_bit_tiffs_stay_refused() -> None:
    file = tiff([1, 2, 3], 16)
    signed = bytearray(file)
    # Replace the tag for samples per pixel by that for their format: 2, signed.
    at = file.index(struct.pack("<HHI", 278, 3, 1))
    signed[at : at + 12] = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    with pytest.raises(ImageError, match="pixels of mode I have no exact"):
        decode(bytes(signed), "x")


def test_deep_gray_of_an_open_image_decodes_the_same() -> None:
    for file in (
        tiff(VALUES, 12),
        tiff([value << 4 for value in VALUES], 16, photometric=0),
        b"P5\n3 1\n4095\n" + struct.pack(">3H", *VALUES[-3:]),
    ):
        assert np.array_equal(to_rgb(Image.open(io.BytesIO(file)), "x"), decode(file, "x"))
