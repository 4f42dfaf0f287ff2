"""Two heads on the same images: is one better, or was it luck?

Only images on which they disagree say anything about that. McNemar's test asks how likely so uneven a split of those
is; the bootstrap draws the images again, for both heads the same ones, and says how far their accuracies differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import HeadError
from featcache.heads.records import Predictions
from featcache.runs.run import Run

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`first` and `second`: accuracies on the same `images`; `difference`: first - second, with its 95 % interval.

    `only_first`, `only_second`: images that only one of them has right. `p_value`: McNemar's, exact and two-sided.
    """

    images: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float


def compare_runs(first: Run | Path | str, second: Run | Path | str, part: str = "test", *, seed: int = 0) -> Comparison:
    """Compare two runs, or the folders of two, on `val` or `test`.

    Raises HeadError if they are of other classes or other images, or cannot be read.
    """
    one, other = (run if isinstance(run, Run) else Run.load(run) for run in (first, second))
    if one.classes != other.classes:
        raise HeadError(
            f"expected two runs on the same classes, got {_few(one.classes)} and {_few(other.classes)}",
            hint="train both on caches of one data set",
        )
    return compare_predictions(one.predictions(part), other.predictions(part), seed=seed)


def compare_predictions(first: Predictions, second: Predictions, *, seed: int = 0) -> Comparison:
    """Compare what two heads said of the same images, in whatever order they stand. `seed`: the bootstrap's.

    Raises HeadError if the images or their labels differ, or there are none.
    """
    one, other = _right(first), _right(second)[_places(first, second)]
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    images = len(one)
    return Comparison(
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
    """How likely it is that fair coins split the disagreements at least so unevenly. 1.0 where there are none."""
    tossed, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1
    for heads in range(1, fewer + 1):
        term = term * (tossed - heads + 1) // heads
        total += term
    # Whole numbers up to here, so that many disagreements do not underflow.
    likely: float = 2 * total / 2**tossed
    return min(1.0, likely)


def _interval(only_first: int, only_second: int, images: int, seed: int) -> tuple[float, float]:
    # Drawing images with replacement draws these counts from a multinomial distribution.
    shares = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=BOOTSTRAP_DRAWS)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / images, [2.5, 97.5])
    return float(low), float(high)


def _right(said: Predictions) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = said.probabilities.argmax(axis=1) == said.labels
    return right


def _places(first: Predictions, second: Predictions) -> NDArray[np.int64]:
    # Where the images of `first` stand in `second`.
    place = {sample: row for row, sample in enumerate(second.ids)}
    missing = [sample for sample in first.ids if sample not in place]
    more = sorted(set(second.ids) - set(first.ids))
    if missing or more or not first.ids:
        raise HeadError(
            "expected two runs on the same images: "
            f"{_count(missing)} only in the first, {_count(more)} only in the second, "
            f"{len(first.ids) - len(missing)} in both",
            hint="the same --val-fraction and --val-seed give the same val images; test depends on the cache alone",
        )
    places = np.array([place[sample] for sample in first.ids], dtype=np.int64)
    relabelled = np.flatnonzero(first.labels != second.labels[places])
    if len(relabelled):
        raise HeadError(
            f"expected the same labels in both runs, but {len(relabelled)} images have another, "
            f"the first {first.ids[relabelled[0]]}",
            hint="images were relabelled between the runs: train the older one again",
        )
    return places


def _count(ids: list[str]) -> str:
    return f"{len(ids)} ({ids[0]})" if len(ids) == 1 else f"{len(ids)} ({ids[0]}, ...)" if ids else "0"


def _few(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")
