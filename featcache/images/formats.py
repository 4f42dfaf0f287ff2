"""The supported image formats, detected by their first bytes. This module does not import PIL."""

from __future__ import annotations

from typing import Final

READ: Final = "AVIF, BMP, GIF, HEIC, JPEG, JPEG 2000, PNG, PPM, TIFF and WEBP files are read"

HEAD_BYTES: Final = 256
"""This many first bytes are enough to detect every supported format."""

_MAGICS: Final = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (b"\x89PNG\r\n\x1a\n",)),
    ("BMP", (b"BM",)),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    # Many texts begin with these two characters, so the white space after them is checked too.
    ("PPM", tuple(b"P%c%c" % (digit, space) for digit in b"123456" for space in b" \t\n\v\f\r")),
    ("JPEG2000", (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
)
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_HEIC_BRANDS: Final = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_CONTAINER_BRANDS: Final = frozenset((b"mif1", b"msf1"))


def format_of(head: bytes) -> str | None:
    """Detect the format of a file by its first bytes.

    Args:
        head: The file, or its first HEAD_BYTES bytes.

    Returns:
        The name of the format; None if it is not supported.
    """
    for kind, magics in _MAGICS:
        if head.startswith(magics):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    return _by_brand(head) if head[4:8] == b"ftyp" else None


def _by_brand(head: bytes) -> str | None:
    # AVIF and HEIC share a container: its major brand may be generic, and the format be among the compatible brands.
    size = min(int.from_bytes(head[:4], "big"), HEAD_BYTES)
    major, brands = head[8:12], {head[at : at + 4] for at in range(8, size, 4) if at != 12}
    if major in _AVIF_BRANDS or (major not in _HEIC_BRANDS and brands & _AVIF_BRANDS):
        return "AVIF"
    return "HEIC" if major in _HEIC_BRANDS or brands & (_HEIC_BRANDS | _CONTAINER_BRANDS) else None
