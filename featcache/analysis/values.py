"""Chooses rows, and reads features as float32, in blocks, checking that they are finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from featcache.errors import HeadError

Rows = npt.NDArray[np.int64]
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


def thin(count: int, limit: int | None, *, labels: npt.NDArray[np.int64] | None = None, seed: int = 0) -> Rows:
    """Choose at most `limit` of `count` row numbers: int64 (n,), ascending. None: all.

    With `labels`, int64 (count,), every label keeps its share, rounded; labels with few rows keep at least one, if
    `limit` allows it. The choice depends only on `seed`.
    """
    if limit is None or count <= limit:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    if labels is None:
        return np.sort(generator.permutation(count)[:limit])
    # Each row's rank within its label, divided by the label's size: taking the lowest keeps the labels' shares.
    order = generator.permutation(count)
    by_label = order[np.argsort(labels[order], kind="stable")]
    _, first, sizes = np.unique(labels[by_label], return_index=True, return_counts=True)
    place = np.arange(count) - first.repeat(sizes)
    share = place / sizes.repeat(sizes)
    return np.sort(by_label[np.lexsort((place, share))[:limit]]).astype(np.int64)
