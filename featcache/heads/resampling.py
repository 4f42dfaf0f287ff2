"""Other cuts of the same train images: folds that are each held out once, and draws of a few images a class.

Every cut is by image, so the views of one image stay together. What judges is cut off first: the images of a fold
before val is cut from the others, val before any shot is drawn. So nothing that judges a head has taught one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.heads.cuts import Cut, Rows, SplitRows, cut_cache, train_images

MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One of several equal parts of the train images, and the cut of all others into train and val.

    `number`: counted from 1. `held`: the images of this part, at their first view; the cut knows nothing of them.
    """

    number: int
    cut: Cut
    held: SplitRows


def fold_cuts(cache: FeatureCache, count: int, *, seed: int, val_fraction: float, val_seed: int) -> tuple[Fold, ...]:
    """The labelled train images as `count` folds, every class spread evenly over them.

    Val, which chooses epochs, is the cache's own or cut from the other folds: so a fold's accuracy is that on images
    which have neither taught nor chosen. Raises HeadError for a class with fewer images than folds, and what
    `cut_cache` raises.
    """
    from sklearn.model_selection import StratifiedKFold

    pool = train_images(cache)
    _require_images(cache, pool, count, f"{count} folds", "fewer --folds")
    splitter = StratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
    return tuple(
        Fold(
            number=number,
            cut=cut_cache(cache, val_fraction=val_fraction, val_seed=val_seed, among=np.asarray(others, np.int64)),
            held=pool.of_images(np.asarray(held, np.int64)),
        )
        for number, (others, held) in enumerate(splitter.split(np.zeros(len(pool)), pool.labels), start=1)
    )


def draw_cuts(cache: FeatureCache, cut: Cut, shots: int, draws: int, *, seed: int) -> tuple[Cut, ...]:
    """`draws` cuts with `shots` train images of each class, drawn from the train images of `cut`; val and test stay.

    A draw of few images is contained in the draw of the same number with more. Raises HeadError for a class with
    fewer train images than shots.
    """
    _require_images(cache, cut.train, shots, f"{shots} shots", "smaller --shots, or more images (a higher --limit)")
    labels = cut.train.labels[:: len(cut.train.rows) // cut.train.images]
    return tuple(replace(cut, train=cut.train.of_images(_drawn(labels, shots, (seed, draw)))) for draw in range(draws))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean by Student's t: the draws are independent. None for a single value."""
    if len(values) < 2:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return max(0.0, middle - half), min(1.0, middle + half)


def _drawn(labels: Rows, shots: int, seed: tuple[int, int]) -> Rows:
    # int64 positions, ascending.
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _require_images(cache: FeatureCache, rows: SplitRows, wanted: int, what: str, hint: str) -> None:
    views = len(rows) // rows.images
    counts = np.bincount(rows.labels[::views], minlength=len(cache.classes)).tolist()
    short = [f"{name} ({count})" for name, count in zip(cache.classes, counts, strict=True) if count < wanted]
    if short:
        shown = ", ".join(short[:MOST_NAMED]) + (f" and {len(short) - MOST_NAMED} more" if short[MOST_NAMED:] else "")
        raise HeadError(
            f"expected at least {wanted} train images of every class for {what}, got fewer of {shown}", hint=hint
        )
