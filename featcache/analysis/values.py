"""Reads features as float32, in blocks, and checks that they are finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from featcache.analysis.thinning import Rows
from featcache.errors import HeadError

Values = npt.NDArray[np.float32]

# The largest size of a block as float32.
BLOCK_BYTES: Final = 32 << 20


class FeatureRows(Protocol):
    """Features (N, D), in memory or on disk: an array, or a cache's FeatureArray."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def read_values(features: FeatureRows, rows: Rows) -> Values:
    """Read `rows` as float32 (n, D), with a stored scale and offset applied.

    Raises HeadError for NaN or infinity, CacheDamaged for rows that are not those that were written.
    """
    values = np.asarray(features[rows]).astype(np.float32)
    scale, offset = getattr(features, "scale", 1.0), getattr(features, "offset", 0.0)
    if (scale, offset) != (1.0, 0.0):
        values = values * np.float32(scale) + np.float32(offset)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise HeadError(
            f"NaN or infinity in row {int(rows[~finite][0])} of {features!r}",
            hint="extract again; --dtype float32 keeps what is too large for float16",
        )
    return values


def blocks(features: FeatureRows, rows: Rows) -> Iterator[tuple[int, Values]]:
    """`read_values` in blocks: (position of the block's first row in `rows`, float32 (n, D))."""
    step = max(1, BLOCK_BYTES // (4 * int(features.shape[1])))
    for start in range(0, len(rows), step):
        yield start, read_values(features, rows[start : start + step])
