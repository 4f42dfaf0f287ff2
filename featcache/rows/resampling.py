"""Cross-validation folds and few-shot draws of the train images of a cache.

Images for evaluation are set aside first: those of a fold before val is taken from the others, and val before any shot
is drawn. So no head is evaluated on images that it was trained on.
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
from featcache.rows.stratifying import Rows, UnitLabels, label_units, stratify_folds
from featcache.rows.target import HeadTarget, head_target


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One fold: a part of the train images that is held out, and the cut of all others into train and val.

    Attributes:
        number: Number of the fold, counted from 1.
        cut: Train and val, from the images of the other folds.
        held: The images that are held out.
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
    """Divide the labelled train images into `count` folds, with classes, or numbers, spread evenly over them.

    Val, which is used to choose the epoch, is the cache's own or is taken from the other folds. So the images of a fold
    are used neither to train its head nor to choose the epoch. Both splits are stratified and keep groups together.

    Args:
        cache: The cache whose targets are read.
        count: Number of folds.
        seed: Seed of the folds.
        val_fraction, val_seed, target, group: As in `cut_cache`.

    Raises:
        HeadError: A class has too few images, and what `cut_cache` raises.
    """
    target = target or head_target(cache, ("label",))
    whole = cut_cache(cache, val_fraction=val_fraction, val_seed=val_seed, target=target, group=group)
    pool = train_images(cache, target)
    unit = None if group is None else units_of(group_codes(cache, "train", group)[pool.rows])
    # Two folds still need three images: one held out, one for train and one for val.
    least = max(count, 3 if whole.val.source == "train" else 2)
    rows = label_units(pool.targets, target.kind, target.outputs, unit)
    _require_units(rows, target, least, f"{count} folds", "images" if unit is None else f"groups of {group}")
    dealt = rows.spread_to_rows(stratify_folds(rows, count, seed=seed))
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
    """Draw `draws` cuts with `shots` train images of each class from the train images of `cut`; val and test stay.

    Draw i with fewer shots is a subset of draw i with more shots. Raises HeadError for a class with fewer train images
    than `shots`, and for a target that is not classes.
    """
    if cut.target.kind != "classes":
        raise HeadError(
            f"--shots is a number of images per class, and {', '.join(cut.target.columns)} holds {cut.target.kind}",
            hint="leave out --shots, or choose a target of classes",
        )
    rows = label_units(cut.train.targets, "classes", cut.target.outputs, None)
    _require_units(rows, cut.target, shots, f"{shots} shots", "images")
    labels = cut.train.targets
    return tuple(replace(cut, train=cut.train.at(_draw(labels, shots, (seed, draw)))) for draw in range(draws))


def mean_interval(values: Sequence[float], *, lowest: float = 0.0) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of independent draws, by Student's t; None for a single value.

    `lowest`: lower bound of the metric; -inf for R2.
    """
    if len(values) < 2:
        return None
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return max(lowest, middle - half), min(1.0, middle + half)


def _draw(labels: Rows, shots: int, seed: tuple[int, int]) -> Rows:
    # Positions of the drawn images: int64, ascending.
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _require_units(rows: UnitLabels, target: HeadTarget, wanted: int, what: str, units: str) -> None:
    if target.kind == "numbers":
        short = [] if rows.units >= wanted else [f"all ({rows.units})"]
    else:
        # A class without any image is no error here: the cut has a note on it.
        pairs = zip(target.names, rows.counts().tolist(), strict=True)
        few = 1 if target.kind == "lists" else wanted
        short = [f"{name} ({count})" for name, count in pairs if 0 < count < few]
        short += [f"all ({rows.units})"] if rows.units < wanted else []
    if short:
        raise HeadError(
            f"expected at least {wanted} train {units} of every class for {what}, got fewer of {few_names(short)}",
            hint=f"fewer --{what.split()[1]}, or more images (a higher --limit)",
        )
