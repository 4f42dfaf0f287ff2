"""Fewer rows that still look like all of them: a seeded choice, balanced as the labels are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def thin(count: int, limit: int | None, *, labels: npt.NDArray[np.int64] | None = None, seed: int = 0) -> Rows:
    """At most `limit` of `count` row numbers, ascending int64; None: all.

    With `labels`, int64 (count,), every label keeps its share, rounded; labels with few rows keep at least one
    while there is room. Which rows of a label are taken depends on `seed` alone.
    """
    if limit is None or count <= limit:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    if labels is None:
        return np.sort(generator.permutation(count)[:limit])
    # Where a row stands among those of its label, as a share: the lowest shares come first from all labels alike.
    order = generator.permutation(count)
    by_label = order[np.argsort(labels[order], kind="stable")]
    _, first, sizes = np.unique(labels[by_label], return_index=True, return_counts=True)
    place = np.arange(count) - first.repeat(sizes)
    share = place / sizes.repeat(sizes)
    return np.sort(by_label[np.lexsort((place, share))[:limit]]).astype(np.int64)
