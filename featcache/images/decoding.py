"""One payload to RGB pixels. Nothing is guessed: what has no exact meaning in 8-bit RGB is an error.

Encoded files are decoded by Pillow, in the formats named here and no others, the format found by the first bytes:
    RGB, L                   as they are; gray becomes three equal channels
    P                        through the palette
    RGBA, LA, PA, P with a transparent colour
                             alpha is dropped, as Pillow's `convert("RGB")` does: colours under it show
    CMYK, YCCK               as Pillow does, Adobe's inverted ones turned over first; no colour profile is applied
    1                        0 and 255
    16-bit gray and RGB      value // 256
    I, F, LAB                refused: 32-bit integers, floats and LAB have no one value in 8-bit RGB
Of an animation or a multi-page file the first picture counts. EXIF orientation is applied; unreadable EXIF is none.
Arrays are uint8 already: (H, W), (H, W, 1), (H, W, 3), or (H, W, 4) with its fourth channel dropped.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from featcache.errors import ImageError
from featcache.images.source import Payload, Pixels

DECODER: Final = "pillow"
"""What the spec records: another decoder gives other pixels."""

MAX_PIXELS: Final = 89_478_485
"""More are refused before any is decoded: a decompression bomb (Pillow warns from this number on)."""

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CONVERTED = frozenset(("1", "L", "LA", "La", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"))
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_MAY_ORIENT = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

_FORMATS: tuple[tuple[str, tuple[bytes, ...], Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    # The plain class: Pillow's own opener makes a multi-picture object of some cameras' JPEG, which costs and warns.
    ("JPEG", (b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
    ("GIF", (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("PPM", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
)


def decode(payload: Payload, name: str) -> Pixels:
    """(H, W, 3) uint8 RGB, C-contiguous and writable, of one encoded file or array. Safe from several threads.

    Raises ImageError, which names `name` and says why: empty, no image, truncated or damaged, too large, or a
    pixel format without an exact 8-bit meaning.
    """
    if isinstance(payload, np.ndarray):
        return _from_array(payload, name)
    kind, open_image = _format_of(payload, name)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"{name}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so truncated images would pass for whole ones",
            hint="leave it at False",
        )
    try:
        image = open_image(io.BytesIO(payload))
        _refuse_bomb(image, name)
        image.load()
        return np.array(_upright(_to_rgb(image, name), _orientation(image)))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Decoders of damaged bytes raise whatever they stumble over.
        raise ImageError(f"{name}: {_complaint(error, kind, len(payload))}") from error


def _format_of(payload: bytes, name: str) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]:
    if not payload:
        raise ImageError(f"{name}: empty file")
    for kind, magics, open_image in _FORMATS:
        if payload.startswith(magics):
            return kind, open_image
    if payload.startswith(b"RIFF") and payload[8:12] == b"WEBP":
        return "WEBP", WebPImagePlugin.WebPImageFile
    raise ImageError(
        f"{name}: not an image (first bytes {payload[:8].hex(' ')}, as text {payload[:16]!r})",
        hint="JPEG, PNG, BMP, GIF, TIFF, WEBP and PPM files are read",
    )


def _refuse_bomb(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width:,} x {height:,} pixels, at most {MAX_PIXELS:,} in all are decoded")


def _complaint(error: Exception, kind: str, size: int) -> str:
    reason = str(error) or type(error).__name__
    ran_out = isinstance(error.__cause__ or error, EOFError | IndexError | struct.error)
    truncated = ran_out or "truncated" in reason.lower()
    return f"{'truncated' if truncated else 'damaged'} {kind} of {size:,} bytes: {reason}"


def to_rgb(image: Image.Image, name: str) -> Pixels:
    """(H, W, 3) uint8 RGB of an image that somebody else has opened, as it stands: no orientation is applied.

    Raises ImageError, naming `name`, as `decode` does.
    """
    _refuse_bomb(image, name)
    try:
        return np.array(_to_rgb(image, name))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name}: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if mode not in _CONVERTED:
        raise ImageError(f"{name}: pixels of mode {mode} have no exact 8-bit RGB value", hint="convert it to 8-bit RGB")
    if "transparency" in image.info:
        # It only names a colour. Pillow would carry it along, and warns where that is a table.
        image = image.copy()
        del image.info["transparency"]
    if mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[mode])
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    # Looking for EXIF costs as much as decoding 32x32 pixels: only where there is some. Pillow itself turns TIFF.
    if not any(key in image.info for key in _MAY_ORIENT):
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # EXIF is no part of the picture: other viewers show it too.
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _from_array(pixels: npt.NDArray[np.generic], name: str) -> Pixels:
    reason = misfit(pixels)
    if reason:
        raise ImageError(f"{name}: {reason}")
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    plane = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(plane, 3, axis=2).astype(np.uint8) if gray else np.array(plane[:, :, :3], np.uint8, order="C")


def misfit(pixels: npt.NDArray[np.generic]) -> str | None:
    """Why an array is no image, None where it is one: uint8, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    if pixels.dtype != np.uint8:
        return f"expected uint8 pixels, got {pixels.dtype}"
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        return f"expected pixels of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}"
    return None if pixels.size else f"expected at least one pixel, got shape {pixels.shape}"
