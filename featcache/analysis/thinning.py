"""A random, stratified choice of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


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
