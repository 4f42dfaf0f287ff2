"""Writes 15 images of unusual sizes, modes and formats, as test material for decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112


def write_odd_images(folder: Path) -> list[Path]:
    """Write the images into a folder; returns their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (image, options) in _images().items():
        image.save(folder / name, **options)
    return sorted(folder.iterdir())


def _images() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    random = np.random.default_rng(0)

    def colours(height: int, width: int) -> Image.Image:
        # Smooth, so that the compressed ones keep them.
        ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
        return Image.fromarray(np.clip(ramp + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8))

    def exif_of(orientation: int) -> Image.Exif:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        return exif

    deep = Image.fromarray((random.random((30, 40)) * 65535).astype(np.uint16))
    alpha = colours(32, 48).convert("RGBA")
    alpha.putalpha(Image.fromarray(random.integers(0, 256, (32, 48), dtype=np.uint8)))
    palette = colours(36, 36).quantize(64)
    return {
        "1x1.png": (colours(1, 1), {}),
        "2000x20.png": (colours(20, 2000), {}),
        "20x2000.jpg": (colours(2000, 20), {}),
        "16-bit.png": (deep, {}),
        "16-bit.tif": (deep, {}),
        "16-bit.pgm": (deep, {}),
        "cmyk.jpg": (colours(40, 50).convert("CMYK"), {"quality": 90}),
        "exif-turned.jpg": (colours(40, 60), {"exif": exif_of(6), "quality": 90}),
        "exif-mirrored.tif": (colours(41, 33), {"exif": exif_of(7)}),
        "palette-with-alpha.png": (palette, {"transparency": bytes(range(0, 256, 4))}),
        "palette-with-one-transparent.gif": (palette, {"transparency": 3}),
        "alpha.webp": (alpha, {"lossless": True}),
        "gray-with-alpha.png": (alpha.convert("LA"), {}),
        "black-and-white.png": (colours(25, 35).convert("1"), {}),
        "exif-turned.avif": (colours(48, 32), {"exif": exif_of(3), "quality": 90}),
    }
