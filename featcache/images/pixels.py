"""The valid dtype and shapes of pixel arrays. This module does not import PIL, so listing arrays needs no decoder."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

DECODER: Final = "pillow"
"""The name of the decoder in the spec of a cache: another decoder gives other pixels."""


def reason_invalid(pixels: npt.NDArray[np.generic]) -> str | None:
    """Why an array is not an image; None if it is one: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    if pixels.dtype != np.uint8:
        return f"expected uint8 pixels, got {pixels.dtype}"
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        return f"expected pixels of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}"
    return None if pixels.size else f"expected at least one pixel, got shape {pixels.shape}"
