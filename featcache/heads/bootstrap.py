"""Bootstrap: images drawn with replacement, to estimate confidence intervals of metrics.

A draw is represented by the count of each image in it. So a metric of a draw is a metric of weighted images, and
everything is sorted only once, before the draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]

MOST_DRAWS, FEWEST_DRAWS = 1_000, 100
# Images of all draws together; they take about a second.
DRAWN_IMAGES = 2_500_000
# Size of one block of draws, as float64 counts.
BLOCK_BYTES = 4 << 20


def number_of_draws(rows: int, columns: int = 1) -> int:
    """Number of bootstrap draws for `rows` images with `columns` outputs."""
    return max(FEWEST_DRAWS, min(MOST_DRAWS, DRAWN_IMAGES // max(1, rows * columns)))


def draw_counts(rows: int, draws: int, *, seed: int) -> Iterator[Counts]:
    """Yield how often each image is in each draw, in blocks float64 (n draws, rows); equal for equal seeds."""
    random, step = np.random.default_rng(seed), max(1, BLOCK_BYTES // (8 * rows))
    for start in range(0, draws, step):
        block = min(step, draws - start)
        chosen = random.integers(0, rows, (block, rows)) + rows * np.arange(block)[:, None]
        yield np.bincount(chosen.ravel(), minlength=block * rows).reshape(block, rows).astype(np.float64)


def percentile_interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The interval between the 2.5th and the 97.5th percentile of a metric over the draws, (draws,), without NaN.

    Raises ValueError if every draw is NaN.
    """
    kept = drawn[~np.isnan(drawn)]
    if not len(kept):
        raise ValueError("expected at least one draw that is not NaN")
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)
