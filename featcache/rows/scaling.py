"""Convert stored numbers to values: value = stored x scale + offset. Only pixels, stored as bytes, need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = TypeVar("Floats", NDArray[np.float32], Tensor)


def scale_stored(stored: Floats, scale: Any, offset: Any) -> Floats:
    """Convert stored numbers to values in place.

    Args:
        stored: float32 (n, d), an array or a tensor; it is changed.
        scale, offset: Numbers, or float32 (d,) of the same type as `stored`.

    Returns:
        `stored` itself.
    """
    if isinstance(scale, float) and (scale, offset) == (1.0, 0.0):
        return stored
    stored *= scale
    stored += offset
    return stored
