"""Images drawn again, with replacement: how far a number that was measured on them would scatter.

A draw is the count of each image in it, so a statistic of a draw is one of weighted images, and all sorting is done
once, before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]

MOST_DRAWS, FEWEST_DRAWS = 1_000, 100
# Images in all draws together: what a second is enough for.
DRAWN_IMAGES = 2_500_000
# Of one block of draws, as float64 counts.
BLOCK_BYTES = 4 << 20


def number_of_draws(rows: int, columns: int = 1) -> int:
    """How many draws are made of so many images with so many columns."""
    return max(FEWEST_DRAWS, min(MOST_DRAWS, DRAWN_IMAGES // max(1, rows * columns)))


def drawn_counts(rows: int, draws: int, *, seed: int) -> Iterator[Counts]:
    """How often each image is in each draw: blocks of float64 (some draws, rows); the same for the same `seed`."""
    random, step = np.random.default_rng(seed), max(1, BLOCK_BYTES // (8 * rows))
    for start in range(0, draws, step):
        block = min(step, draws - start)
        chosen = random.integers(0, rows, (block, rows)) + rows * np.arange(block)[:, None]
        yield np.bincount(chosen.ravel(), minlength=block * rows).reshape(block, rows).astype(np.float64)


def middle_share(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The interval that holds the middle 95 % of what was drawn, (draws,); NaN, where a draw gives none, is left out.

    Raises ValueError where no draw gives a number.
    """
    kept = drawn[~np.isnan(drawn)]
    if not len(kept):
        raise ValueError("expected at least one draw that says something")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)
