"""Stored numbers and values: value = stored x scale + offset. Pixels are stored as bytes; for others it is x 1 + 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = TypeVar("Floats", NDArray[np.float32], Tensor)


def scale_stored(stored: Floats, scale: Any, offset: Any) -> Floats:
    """Turn stored numbers into values where they lie.

    Args:
        stored: float32 (n, d), an array or a tensor; it is changed.
        scale, offset: A number each, or float32 (d,) of the same kind as `stored`.

    Returns:
        `stored` itself.
    """
    if isinstance(scale, float) and (scale, offset) == (1.0, 0.0):
        return stored
    stored *= scale
    stored += offset
    return stored
