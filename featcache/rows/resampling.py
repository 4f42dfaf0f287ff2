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

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.rows.cuts import Cut, SplitRows, cut_cache, cut_rows, few_names, train_images
from featcache.rows.groups import group_codes, units_of
from featcache.rows.stratifying import Marked, Rows, marked, stratified_folds
from featcache.rows.target import HeadTarget, head_target


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One of several equal parts of the train images, and the cut of all others into train and val.

    `number`: counted from 1. `held`: the images of this part; the cut knows nothing of them.
    """

    number: int
    cut: Cut
    held: SplitRows


def fold_cuts(
    cache: FeatureCache,
    count: int,
    *,
    seed: int,
    val_fraction: float,
    val_seed: int,
    target: HeadTarget | None = None,
    group: str | None = None,
) -> tuple[Fold, ...]:
    """The labelled train images as `count` folds, over which classes, or numbers, are spread evenly.

    Val, which chooses epochs, is the cache's own or cut from the other folds: so a fold's score is that on images
    which have neither taught nor chosen. Both cuts are stratified and keep groups together.

    Args:
        cache: Its targets are read.
        count: How many folds.
        seed: Of the folds.
        val_fraction, val_seed, target, group: As in `cut_cache`.

    Raises:
        HeadError: A class has too few images, and what `cut_cache` raises.
    """
    target = target or head_target(cache, ("label",))
    whole = cut_cache(cache, val_fraction=val_fraction, val_seed=val_seed, target=target, group=group)
    pool = train_images(cache, target)
    unit = None if group is None else units_of(group_codes(cache, "train", group)[pool.rows])
    # With two folds, three images: one held out, one for train and one for val.
    least = max(count, 3 if whole.val.source == "train" else 2)
    rows = marked(pool.targets, target.kind, target.outputs, unit)
    _require_units(rows, target, least, f"{count} folds", "images" if unit is None else f"groups of {group}")
    dealt = rows.of_rows(stratified_folds(rows, count, seed=seed))
    folds = []
    for number in range(1, count + 1):
        others, held = pool.at(np.flatnonzero(dealt != number - 1)), pool.at(np.flatnonzero(dealt == number - 1))
        cut = replace(whole, train=others)
        if whole.val.source == "train":
            left = None if unit is None else units_of(unit[dealt != number - 1])
            train, val = cut_rows(
                others.targets, target, val_fraction=val_fraction, val_seed=val_seed + number, unit=left
            )
            cut = replace(cut, train=others.at(train), val=others.at(val))
        folds.append(Fold(number=number, cut=cut, held=held))
    return tuple(folds)


def draw_cuts(cut: Cut, shots: int, draws: int, *, seed: int) -> tuple[Cut, ...]:
    """`draws` cuts with `shots` train images of each class, drawn from the train images of `cut`; val and test stay.

    A draw of few images is contained in the draw of the same number with more. Raises HeadError for a class with
    fewer train images than shots, and for another target than classes.
    """
    if cut.target.kind != "classes":
        raise HeadError(
            f"--shots are images a class, and {', '.join(cut.target.columns)} holds {cut.target.kind}",
            hint="leave out --shots, or take a target of classes",
        )
    rows = marked(cut.train.targets, "classes", cut.target.outputs, None)
    _require_units(rows, cut.target, shots, f"{shots} shots", "images")
    labels = cut.train.targets
    return tuple(replace(cut, train=cut.train.at(_drawn(labels, shots, (seed, draw)))) for draw in range(draws))


def mean_interval(values: Sequence[float], *, lowest: float = 0.0) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean by Student's t: the draws are independent. None for a single value.

    `lowest`: what the metric cannot fall below; R2 can be as low as you like (-inf).
    """
    if len(values) < 2:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return max(lowest, middle - half), min(1.0, middle + half)


def _drawn(labels: Rows, shots: int, seed: tuple[int, int]) -> Rows:
    # int64 positions, ascending.
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _require_units(rows: Marked, target: HeadTarget, wanted: int, what: str, units: str) -> None:
    if target.kind == "numbers":
        short = [] if rows.units >= wanted else [f"all ({rows.units})"]
    else:
        # A class without any image is a note of the cut.
        pairs = zip(target.names, rows.counts().tolist(), strict=True)
        few = 1 if target.kind == "lists" else wanted
        short = [f"{name} ({count})" for name, count in pairs if 0 < count < few]
        short += [f"all ({rows.units})"] if rows.units < wanted else []
    if short:
        raise HeadError(
            f"expected at least {wanted} train {units} of every class for {what}, got fewer of {few_names(short)}",
            hint=f"fewer --{what.split()[1]}, or more images (a higher --limit)",
        )
