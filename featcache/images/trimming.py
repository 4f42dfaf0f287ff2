"""Removes metadata from an encoded image before it is decoded.

Decoders refuse large metadata, or take minutes for it: a colour profile of some megabytes, a comment in a million
pieces. Profiles and texts are not used here, so they are removed; EXIF and XMP stay, for the orientation.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

HEADER_BYTES: Final = 64 * 2**10
"""A longer header of a PPM file is an error: it contains four short words and perhaps a comment."""

MOST_BLOCKS: Final = 65_536
"""More pieces of metadata are an error: 20 MB of EXIF in a JPEG file are only 300 pieces."""

# Smaller files cannot slow a decoder down much; parsing them would cost as much time as it saves.
_SMALL_BYTES: Final = 256 * 2**10
_PIECE_BYTES: Final = 2**20

_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_LOOKED_AT: Final = frozenset((b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"IEND"))
_PNG_ORIENTING: Final = frozenset((b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"))
_MOST_TEXT_BYTES: Final = 16 * 2**20
_MOST_INFLATED_BYTES: Final = 2**20
"""Pillow refuses the whole image if a compressed text is larger."""

_JPEG_ALONE: Final = frozenset((0x01, *range(0xD0, 0xDA)))
_JPEG_MARKER: Final = re.compile(rb"\xff[^\0\xff]", re.DOTALL)
_JPEG_SCAN: Final = 0xDA
_JPEG_COMMENT: Final = 0xFE
# Not dropped: the markers of JFIF and Adobe, which define how colours are stored.
_JPEG_DROPPED: Final = frozenset((_JPEG_COMMENT, *range(0xE2, 0xEE), 0xEF))
_JPEG_EXIF: Final = b"Exif\0\0"
_JPEG_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_MOST_EXIF_SEGMENTS: Final = 64

_GIF_CONTROL: Final = 0xF9
_GIF_BLOCK: Final = re.compile(rb"[!,;]")

_PPM_COMMENT: Final = re.compile(rb"#[^\r\n]*(?:[\r\n]|\Z)")
_PPM_PLAIN: Final = (b"P1", b"P2", b"P3")
_PPM_WITHOUT_MAXIMUM: Final = (b"P1", b"P4")

_Block = tuple[int, int, int, int]


def trim(kind: str, payload: bytes) -> bytes:
    """Remove the metadata that no pixel depends on.

    From the first damaged byte on, a file stays unchanged: the decoder reports the damage.

    Args:
        kind: The format, as `formats.format_of` returns it.
        payload: The whole file.

    Returns:
        The smaller file; the same object if there is nothing to remove.

    Raises:
        ValueError: The header of a PPM file is longer than HEADER_BYTES, or a JPEG or GIF file has more than
            MOST_BLOCKS pieces of metadata before its picture.
    """
    trim_kind = _TRIMS.get(kind)
    return trim_kind(payload) if trim_kind else payload


def _trim_png(payload: bytes) -> bytes:
    # To the end of the file: Pillow also reads texts after the picture. Small files too, since a small profile may
    # inflate to megabytes. Most small files are just a header and one chunk of picture, which is quick to check.
    if payload.startswith(b"IDAT", 37) and int.from_bytes(payload[33:37], "big") + 57 == len(payload):
        return payload
    dropped: list[int] = []
    at, size = 8, len(payload)
    while at + 12 <= size:
        length, kind = _PNG_CHUNK.unpack_from(payload, at)
        end = at + 12 + length
        if kind in _PNG_LOOKED_AT:
            if end > size or kind == b"IEND":
                break
            if kind == b"iCCP" or not _orients(kind, payload[at + 8 : end - 4]):
                _drop(dropped, at, end)
        at = end
    return _without(payload, dropped)


def _orients(kind: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _PNG_ORIENTING or len(body) > _MOST_TEXT_BYTES:
        return False
    if kind == b"zTXt":
        return rest[:1] == b"\0" and _inflates(rest[1:])
    compressed = kind == b"iTXt" and rest[:1] not in (b"", b"\0")
    return not compressed or _inflates(rest[2:].split(b"\0", 2)[-1])


def _inflates(packed: bytes) -> bool:
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _MOST_INFLATED_BYTES)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


def _trim_jpeg(payload: bytes) -> bytes:
    if len(payload) <= _SMALL_BYTES:
        return payload
    dropped: list[int] = []
    exif_segments = 0
    for marker, junk, at, end in _refuse_many(_jpeg_segments(payload)):
        exif = marker == 0xE1 and payload.startswith(_JPEG_EXIF, at + 4)
        exif_segments += exif
        # Pillow joins all segments of EXIF, one by one.
        app1_kept = (exif and exif_segments <= _MOST_EXIF_SEGMENTS) or payload.startswith(_JPEG_XMP, at + 4)
        if marker in _JPEG_DROPPED or (marker == 0xE1 and not app1_kept):
            _drop(dropped, junk, end)
        elif junk < at:
            _drop(dropped, junk, at)
    return _without(payload, dropped)


def _jpeg_segments(payload: bytes) -> Iterator[_Block]:
    # (marker, start of the junk before it, its own start, its end), up to the first scan.
    junk, size = 2, len(payload)
    while found := _JPEG_MARKER.search(payload, junk):
        at, marker = found.start(), payload[found.start() + 1]
        end = at + 2 if marker in _JPEG_ALONE else at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        if end > size or marker == _JPEG_SCAN:
            return
        yield marker, junk, at, end
        junk = end
    yield 0, junk, size, size


def _refuse_many(blocks: Iterator[_Block]) -> Iterator[_Block]:
    for number, block in enumerate(blocks):
        if number == MOST_BLOCKS:
            raise ValueError(f"more than {MOST_BLOCKS:,} pieces of metadata before its picture")
        yield block


def _trim_gif(payload: bytes) -> bytes:
    if len(payload) <= _SMALL_BYTES:
        return payload
    dropped: list[int] = []
    for label, junk, at, end in _refuse_many(_gif_extensions(payload)):
        _drop(dropped, junk, at if label == _GIF_CONTROL else end)
    return _without(payload, dropped)


def _gif_extensions(payload: bytes) -> Iterator[_Block]:
    # As `_jpeg_segments`: (label, start of the junk before it, its own start, its end), up to the first image.
    flags, size = payload[10], len(payload)
    junk = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while (found := _GIF_BLOCK.search(payload, junk)) and found[0] == b"!":
        at = found.start()
        end = _gif_extension_end(payload, at + 2)
        if end is None:
            return
        yield payload[at + 1], junk, at, end
        junk = end
    image = found.start() if found else size
    yield 0, junk, image, image


def _gif_extension_end(payload: bytes, at: int) -> int | None:
    size = len(payload)
    while at < size and (length := payload[at]):
        at += length + 1
    return at + 1 if at < size else None


def _trim_ppm(payload: bytes) -> bytes:
    if len(payload) > HEADER_BYTES:
        head = _PPM_COMMENT.sub(b"", payload[2:HEADER_BYTES])
        words = 2 if payload.startswith(_PPM_WITHOUT_MAXIMUM) else 3
        if len((head + b"." if head[-1:].isspace() else head).split(None, words)) <= words:
            raise ValueError(f"its header is longer than {HEADER_BYTES:,} bytes")
    if payload.startswith(_PPM_PLAIN) and b"#" in payload:
        # Pillow copies the rest of the numbers for every comment among them.
        return b"".join(_PPM_COMMENT.sub(b"", piece) for piece in _line_pieces(payload))
    return payload


def _line_pieces(payload: bytes) -> Iterator[bytes]:
    # Whole lines, about _PIECE_BYTES at once: millions of tiny matches in one call would need gigabytes.
    at = 0
    while at < len(payload):
        end = payload.find(b"\n", at + _PIECE_BYTES) + 1 or len(payload)
        yield payload[at:end]
        at = end


def _drop(dropped: list[int], start: int, end: int) -> None:
    # A flat list start, end, start, end, ...; adjacent ranges are merged.
    if dropped and dropped[-1] == start:
        dropped[-1] = end
    elif start < end:
        dropped += (start, end)


def _without(payload: bytes, dropped: list[int]) -> bytes:
    if not dropped:
        return payload
    view, edges = memoryview(payload), [0, *dropped, len(payload)]
    return b"".join(view[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


_TRIMS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "PNG": _trim_png,
    "JPEG": _trim_jpeg,
    "GIF": _trim_gif,
    "PPM": _trim_ppm,
}
