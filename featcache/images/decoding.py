"""Decodes a payload to RGB pixels. Pixels without an exact value in 8-bit RGB are an error.

Encoded files are decoded by Pillow (HEIC by pillow-heif); `formats` detects the format by the first bytes. Modes:
    RGB, L                   unchanged; gray becomes three equal channels
    P                        through the palette
    RGBA, LA, PA, P with a transparent colour
                             alpha is dropped, as by Pillow's `convert("RGB")`; the colours stay
    CMYK, YCCK               as Pillow does (Adobe's inverted files are inverted first); no colour profile is applied
    1                        0 and 255
    16-bit gray and RGB      value // 256; inverted if white is zero (TIFF), like 8-bit gray
    fewer bits than 16       the maximum of a PPM file, and of 12 bits, is white; colour of a PPM file is rounded
    I, F, LAB                error: 32-bit integers, floats and LAB have no unique value in 8-bit RGB
An animation or multi-page file gives its first picture, HEIC its primary one. EXIF orientation is applied; AVIF and
HEIC use that of the container; unreadable EXIF is ignored. `trimming` removes metadata that no pixel depends on.
Arrays must be uint8: (H, W), (H, W, 1), (H, W, 3), or (H, W, 4) with its fourth channel dropped.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from featcache.errors import FeatcacheError, ImageError, MissingExtra
from featcache.images.formats import READ, format_of
from featcache.images.pixels import reason_invalid
from featcache.images.source import Payload, Pixels
from featcache.images.trimming import trim

MAX_PIXELS: Final = 89_478_485
"""Larger images are refused before decoding, as decompression bombs (Pillow warns from this size on)."""

_ORIENTATION_TAG, _BITS_TAG, _PHOTOMETRIC_TAG = 0x0112, 0x0102, 0x0106
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
_MAY_ORIENT = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))

# Imported at the first file of that format. For JPEG the plain class: Pillow's own opener returns a multi-picture
# object for some cameras' files, which is slower and warns.
_READERS: Final = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "TIFF": ("featcache.images.tiff", "TiffReader"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "HEIC": ("pillow_heif", "HeifImageFile"),
}


def decode(payload: Payload, name: str) -> Pixels:
    """Decode one encoded file or array to RGB. Thread-safe.

    Args:
        payload: An encoded file, or pixels: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: The name of the image in error messages.

    Returns:
        RGB pixels, uint8 (H, W, 3), C-contiguous and writable.

    Raises:
        ImageError: The file is empty, no image, truncated, damaged or too large, or its pixels have no exact value
            in 8-bit RGB.
        MissingExtra: A HEIC file, without the extra `heic`.
    """
    if isinstance(payload, np.ndarray):
        return _from_array(payload, name)
    kind = _kind(payload, name)
    reader = _reader(kind)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"{name}: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so truncated images would pass for whole ones",
            hint="leave it at False",
        )
    try:
        image = reader(io.BytesIO(trim(kind, payload)))
        _refuse_bomb(image, name)
        image.load()
        return np.array(_upright(_to_rgb(image, name), _orientation(image, kind)))
    except (FeatcacheError, MemoryError):
        raise
    except Exception as error:  # Decoders raise all kinds of errors on damaged bytes.
        raise ImageError(f"{name}: {_complaint(error, kind, len(payload))}") from error


def _kind(payload: bytes, name: str) -> str:
    kind = format_of(payload)
    if kind:
        return kind
    if not payload:
        raise ImageError(f"{name}: empty file")
    raise ImageError(
        f"{name}: not an image (first bytes {payload[:8].hex(' ')}, as text {payload[:16]!r})",
        hint=READ,
    )


@cache
def _reader(kind: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    module, reader = _READERS[kind]
    try:
        found: Callable[[io.BytesIO], ImageFile.ImageFile] = getattr(importlib.import_module(module), reader)
    except ModuleNotFoundError as error:
        if kind != "HEIC" or error.name != module:
            raise
        raise MissingExtra("reading HEIC images", package="pillow-heif", extra="heic") from error
    return found


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
    """Convert an open PIL image to RGB, uint8 (H, W, 3); EXIF orientation is not applied.

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
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        return Image.fromarray(_top_bits(image)).convert("RGB")
    if mode not in _CONVERTED:
        raise ImageError(f"{name}: pixels of mode {mode} have no exact 8-bit RGB value", hint="convert it to 8-bit RGB")
    if "transparency" in image.info:
        # The key only names a transparent colour; Pillow would keep it, and warns if it is a table.
        image = image.copy()
        del image.info["transparency"]
    if mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[mode])
    return image.convert("RGB")


def _top_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    # Pillow scales gray of more than 8 bits to 16, except 12-bit TIFF; it inverts white-is-zero at 8 bits, never at 16.
    tags: Any = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_BITS_TAG) == (12,) else 16
    top = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - top if tags and tags.get(_PHOTOMETRIC_TAG, 0) == 0 else top


def _orientation(image: Image.Image, kind: str) -> int:
    # Parsing EXIF costs as much as decoding 32x32 pixels, so only if there is some. Pillow rotates TIFF itself, and
    # pillow-heif HEIC. For AVIF Pillow writes the container's orientation into EXIF, and XMP must not override it.
    if kind == "HEIC" or _MAY_ORIENT.isdisjoint(image.info):
        return 1
    if kind == "AVIF":
        image.info.pop("xmp", None)
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # A picture with unreadable EXIF is still valid; viewers show it too.
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _from_array(pixels: npt.NDArray[np.generic], name: str) -> Pixels:
    reason = reason_invalid(pixels)
    if reason:
        raise ImageError(f"{name}: {reason}")
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    plane = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(plane, 3, axis=2).astype(np.uint8) if gray else np.array(plane[:, :, :3], np.uint8, order="C")
