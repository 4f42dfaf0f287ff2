"""Tests whether one of two heads is better on the same images, or whether the difference is chance.

For classes: McNemar's test, which uses only the images that exactly one of the heads predicts correctly. For all
targets: a paired bootstrap over the images gives the confidence interval of the difference of the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads.bootstrap import percentile_interval
from featcache.heads.list_metrics import map_draws, mean_average_precision
from featcache.heads.number_metrics import mean_r2, r2_draws
from featcache.heads.records import Predictions
from featcache.runs.run import Run

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of two heads on the same images.

    Attributes:
        metric: The metric compared: "accuracy", "map" or "r2".
        images: Number of images.
        first, second: The metric of each head.
        difference: first - second.
        interval: The 95 % confidence interval of the difference, by bootstrap over the images.
        only_first, only_second: For classes: number of images that only this head predicts correctly; else None.
        p_value: For classes: of McNemar's test, exact and two-sided; else None.
    """

    metric: str
    images: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


def compare_runs(first: Run | Path | str, second: Run | Path | str, part: str = "test", *, seed: int = 0) -> Comparison:
    """Compare two runs on the same images.

    Args:
        first: A run, or its folder.
        second: A run, or its folder.
        part: "val" or "test".
        seed: Seed of the bootstrap.

    Returns:
        The comparison, `first` minus `second`.

    Raises:
        HeadError: The runs have different targets or images, or cannot be read.
    """
    one, other = (run if isinstance(run, Run) else Run.load(run) for run in (first, second))
    if one.target != other.target:
        same = one.target.names == other.target.names
        found = [f"{', '.join(run.target.columns)} ({_few(run.target.names)})" for run in (one, other)]
        raise HeadError(
            f"expected two runs on the same {'target' if same else 'classes'}, got {found[0]} and {found[1]}",
            hint="train both on caches of one data set, with the same --target",
        )
    return compare_predictions(one.predictions(part), other.predictions(part), seed=seed)


def compare_predictions(first: Predictions, second: Predictions, *, seed: int = 0) -> Comparison:
    """Compare the predictions of two heads on the same images, in any order. `seed`: of the bootstrap.

    Raises HeadError if the images or their labels differ, or if there are no images.
    """
    places = _places(first, second)
    if first.kind == "classes":
        return _compare_classes(_right(first), _right(second)[places], seed)
    several = first.kind == "lists"
    measured, drawn = (mean_average_precision, map_draws) if several else (mean_r2, r2_draws)
    pairs = [(predicted, first.targets) for predicted in (first.outputs, second.outputs[places])]
    one, other = (measured(*pair) for pair in pairs)
    draws = [drawn(*pair, seed=seed) for pair in pairs]
    return Comparison(
        metric="map" if several else "r2",
        images=len(places),
        first=one,
        second=other,
        difference=one - other,
        interval=percentile_interval(draws[0] - draws[1]),
    )


def _compare_classes(one: NDArray[np.bool_], other: NDArray[np.bool_], seed: int) -> Comparison:
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    images = len(one)
    return Comparison(
        metric="accuracy",
        images=images,
        first=float(one.mean()),
        second=float(other.mean()),
        difference=(only_first - only_second) / images,
        interval=_interval(only_first, only_second, images, seed),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p-value, from the images that only one head predicts correctly; 1.0 without any."""
    # Imported here, because it takes a second.
    from scipy.stats import binomtest

    together = only_first + only_second
    return float(binomtest(only_first, together).pvalue) if together else 1.0


def _interval(only_first: int, only_second: int, images: int, seed: int) -> tuple[float, float]:
    # Drawing images with replacement draws these counts from a multinomial distribution.
    shares = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=BOOTSTRAP_DRAWS)
    return percentile_interval((drawn[:, 0] - drawn[:, 1]) / images)


def _right(predicted: Predictions) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = predicted.outputs.argmax(axis=1) == predicted.targets
    return right


def _places(first: Predictions, second: Predictions) -> NDArray[np.int64]:
    # For each image of `first`, its row in `second`.
    place = {sample: row for row, sample in enumerate(second.ids)}
    missing = [sample for sample in first.ids if sample not in place]
    more = sorted(set(second.ids) - set(first.ids))
    if missing or more or not first.ids:
        raise HeadError(
            "expected two runs on the same images: "
            f"{_count(missing)} only in the first, {_count(more)} only in the second, "
            f"{len(first.ids) - len(missing)} in both",
            hint="the same val_fraction and val_seed give the same val images; test depends on the cache alone",
        )
    places = np.array([place[sample] for sample in first.ids], dtype=np.int64)
    other = first.targets != second.targets[places]
    relabelled = np.flatnonzero(other if other.ndim == 1 else other.any(axis=1))
    if len(relabelled):
        raise HeadError(
            f"expected the same labels in both runs, but {len(relabelled)} images have another, "
            f"the first {first.ids[relabelled[0]]}",
            hint="the labels changed between the runs: train the older one again",
        )
    return places


def _count(ids: list[str]) -> str:
    return f"{len(ids)} ({ids[0]})" if len(ids) == 1 else f"{len(ids)} ({ids[0]}, ...)" if ids else "0"


def _few(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")
