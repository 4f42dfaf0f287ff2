"""Metrics of regression, with NumPy only: values and targets are (N, C), in the targets' own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.heads.bootstrap import Counts, draw_counts, number_of_draws, percentile_interval
from featcache.heads.metric_records import Measurement, NumberErrors, NumberMetrics

Values = NDArray[np.float64]
# The error at which Huber's loss changes from quadratic to linear, in deviations of the train values.
HUBER_DELTA = 1.0
_NAMES = ("mae", "rmse", "r2", "spearman")


def measure_numbers(values: NDArray[np.floating], targets: Values, *, seed: int) -> NumberMetrics:
    """All metrics of one part. `seed`: seed of the bootstrap."""
    ranks = [(_Ranks.of(predicted), _Ranks.of(right)) for predicted, right in zip(values.T, targets.T, strict=True)]
    columns = list(zip(_moments(values, targets), ranks, strict=True))
    found = _statistics(columns, np.ones((1, len(targets))))
    rows = len(targets)
    draws = draw_counts(rows, number_of_draws(rows, len(columns)), seed=seed)
    blocks = [_statistics(columns, counts) for counts in draws]
    drawn = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in _NAMES}
    each = [
        _errors({name: found[name][number] for name in _NAMES}, {name: drawn[name][number] for name in _NAMES})
        for number in range(len(columns))
    ]
    overall = _errors(*({name: nan_mean(one[name]) for name in _NAMES} for one in (found, drawn)))
    return NumberMetrics(images=rows, columns=tuple(each), overall=overall)


def mean_r2(values: NDArray[np.floating], targets: Values) -> float:
    """R2, averaged over all columns."""
    once = np.ones((1, len(targets)))
    return float(np.mean([_sizes(moments, once)[2] for moments in _moments(values, targets)]))


def r2_draws(values: NDArray[np.floating], targets: Values, *, seed: int) -> Values:
    """The same for each bootstrap draw, (draws,): two heads with the same rows and `seed` have the same draws."""
    columns, rows = _moments(values, targets), len(targets)
    blocks = draw_counts(rows, number_of_draws(rows, len(columns)), seed=seed)
    return np.concatenate([np.mean([_sizes(moments, counts)[2] for moments in columns], axis=0) for counts in blocks])


def number_loss(values: NDArray[np.floating], targets: Values, *, loss: str, scale: Values | None) -> float:
    """The mean loss over all images and columns.

    Args:
        values: (N, C).
        targets: (N, C).
        loss: "mse", "l1" or "huber".
        scale: (C,) the unit of each column; None for the targets' own units.
    """
    errors = np.abs(values - targets) if scale is None else np.abs(values - targets) / scale
    if loss == "mse":
        return float((errors**2).mean())
    if loss == "l1":
        return float(errors.mean())
    inside = errors <= HUBER_DELTA
    return float(np.where(inside, errors**2 / 2, HUBER_DELTA * (errors - HUBER_DELTA / 2)).mean())


def nan_mean(values: Values) -> Values:
    """The mean over the first axis, without NaN; NaN where all values are NaN. numpy.nanmean would warn there."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))


# --- one column, of weighted images ------------------------------------------------------------------------


def _moments(values: NDArray[np.floating], targets: Values) -> list[Values]:
    """For each column, (N, 4) per image: the absolute error, its square, the centred target, its square.

    The mean of the targets is subtracted, so that squares do not lose digits.
    """
    errors, middles = np.abs(values - targets), targets - targets.mean(axis=0)
    each = zip(errors.T, middles.T, strict=True)
    return [np.stack([error, error**2, middle, middle**2], axis=1) for error, middle in each]


def _sizes(moments: Values, counts: Counts) -> tuple[Values, Values, Values]:
    """MAE, RMSE and R2 of images weighted by `counts`: (N, 4), (draws, N) -> (draws,) each."""
    absolute, squared, first, second = (counts @ moments / counts.sum(axis=1, keepdims=True)).T
    about = second - first**2
    # Where all targets are equal, their variance is only rounding errors.
    varied = about > 1e-12 * second
    left = np.divide(squared, about, out=np.zeros_like(about), where=varied)
    return absolute, np.sqrt(squared), np.where(varied, 1 - left, np.where(squared > 0, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranks:
    """The ranks of some values; equal values have the mean of their ranks.

    Attributes:
        order: (N,) the images from the lowest to the highest value.
        starts: The first place of each run of equal values.
        run: (N,) the run of each image.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    run: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> _Ranks:
        """The ranks of `values` (N,)."""
        order = np.argsort(values, kind="stable")
        new = np.append(True, values[order][1:] != values[order][:-1])
        run = np.empty(len(values), np.int64)
        run[order] = np.cumsum(new) - 1
        return cls(order=order, starts=np.flatnonzero(new), run=run)

    def deviations(self, counts: Counts) -> Values:
        """Ranks of images weighted by `counts`, minus their mean: (draws, N) -> (draws, N)."""
        ordered = counts[:, self.order]
        equal = len(self.starts) < len(self.order)
        sizes = np.add.reduceat(ordered, self.starts, axis=1) if equal else ordered
        middles = np.cumsum(sizes, axis=1) - sizes / 2
        return np.asarray((middles - counts.sum(axis=1, keepdims=True) / 2)[:, self.run])


def _spearman(ranks: tuple[_Ranks, _Ranks], counts: Counts) -> Values:
    """Rank correlation of images weighted by `counts`: (draws, N) -> (draws,), NaN where all values are equal."""
    one, other = (each.deviations(counts) for each in ranks)
    pairs = ((one, other), (one, one), (other, other))
    both, first, second = (np.einsum("dn,dn,dn->d", counts, *pair) for pair in pairs)
    with np.errstate(invalid="ignore"):
        correlation = both / np.sqrt(first * second)
    return np.asarray(np.clip(correlation, -1, 1))


def _statistics(columns: Sequence[tuple[Values, tuple[_Ranks, _Ranks]]], counts: Counts) -> dict[str, Values]:
    """Each statistic of each column in each draw: (C, draws)."""
    each = [(*_sizes(moments, counts), _spearman(ranks, counts)) for moments, ranks in columns]
    return {name: np.stack([one[place] for one in each]) for place, name in enumerate(_NAMES)}


def _errors(found: dict[str, Values], drawn: dict[str, Values]) -> NumberErrors:
    mae, rmse, r2 = (
        Measurement(value=float(found[name][0]), interval=percentile_interval(drawn[name]))
        for name in ("mae", "rmse", "r2")
    )
    ranked = float(found["spearman"][0])
    none = np.isnan(ranked)
    spearman = None if none else Measurement(value=ranked, interval=percentile_interval(drawn["spearman"]))
    return NumberErrors(mae=mae, rmse=rmse, r2=r2, spearman=spearman)
