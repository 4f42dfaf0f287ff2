"""Other cuts of the same train images: folds that are each held out once, and draws of a few images a class.

What judges is cut off first: the images of a fold before val is cut from the others, val before any shot is drawn. So
nothing that judges a head has taught one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.rows.cuts import Cut, Rows, SplitRows, cut_cache, train_images

MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One of several equal parts of the train images, and the cut of all others into train and val.

    `number`: counted from 1. `held`: the images of this part; the cut knows nothing of them.
    """

    number: int
    cut: Cut
    held: SplitRows


def fold_cuts(cache: FeatureCache, count: int, *, seed: int, val_fraction: float, val_seed: int) -> tuple[Fold, ...]:
    """The labelled train images as `count` folds, every class spread evenly over them.

    Val, which chooses epochs, is the cache's own or `val_fraction` of each class of the other folds: so a fold's
    accuracy is that on images which have neither taught nor chosen. Raises HeadError for a class with too few images,
    and what `cut_cache` raises.
    """
    from sklearn.model_selection import StratifiedKFold

    whole = cut_cache(cache, val_fraction=val_fraction, val_seed=val_seed)
    pool = train_images(cache)
    # With two folds, three images: one held out, one for train and one for val.
    least = max(count, 3 if whole.val.source == "train" else 2)
    _require_images(cache, pool, least, f"{count} folds", "fewer --folds, or more images (a higher --limit)")
    splitter = StratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
    folds = []
    for number, (others, held) in enumerate(splitter.split(np.zeros(len(pool)), pool.targets), start=1):
        cut = replace(whole, train=pool.at(others))
        if whole.val.source == "train":
            val = _share_of_each_class(pool.targets[others], val_fraction, (val_seed, number))
            cut = replace(cut, train=pool.at(others[~val]), val=pool.at(others[val]))
        folds.append(Fold(number=number, cut=cut, held=pool.at(held)))
    return tuple(folds)


def draw_cuts(cache: FeatureCache, cut: Cut, shots: int, draws: int, *, seed: int) -> tuple[Cut, ...]:
    """`draws` cuts with `shots` train images of each class, drawn from the train images of `cut`; val and test stay.

    A draw of few images is contained in the draw of the same number with more. Raises HeadError for a class with
    fewer train images than shots.
    """
    _require_images(cache, cut.train, shots, f"{shots} shots", "smaller --shots, or more images (a higher --limit)")
    labels = cut.train.targets
    return tuple(replace(cut, train=cut.train.at(_drawn(labels, shots, (seed, draw)))) for draw in range(draws))


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


def _share_of_each_class(labels: Rows, share: float, seed: tuple[int, int]) -> NDArray[np.bool_]:
    # At least one of each class, and never all.
    rng, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen[own[: min(max(1, round(len(own) * share)), len(own) - 1)]] = True
    return chosen


def _require_images(cache: FeatureCache, rows: SplitRows, wanted: int, what: str, hint: str) -> None:
    counts = np.bincount(rows.targets, minlength=len(cache.classes)).tolist()
    short = [f"{name} ({count})" for name, count in zip(cache.classes, counts, strict=True) if count < wanted]
    if short:
        shown = ", ".join(short[:MOST_NAMED]) + (f" and {len(short) - MOST_NAMED} more" if short[MOST_NAMED:] else "")
        raise HeadError(
            f"expected at least {wanted} train images of every class for {what}, got fewer of {shown}", hint=hint
        )
