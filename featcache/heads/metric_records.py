"""All metrics of a head on one part (train, val or test): one record for each kind of target.

No number is NaN; a metric that is undefined is None. Intervals are 95 % confidence intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featcache.display import Shown

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose confidence is in (low, high]; the first bin includes 0.

    Attributes:
        low, high: Limits of the bin, fractions.
        images: Number of images.
        confidence, accuracy: Their means, fractions.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassMetrics(Shown):
    """Metrics of classification. All but counts and the temperature are fractions from 0 to 1.

    Attributes:
        accuracy: Share of images whose right class has the largest output.
        accuracy_interval: Wilson's interval of the accuracy.
        top5: Share of images whose right class is among the five largest outputs; None with 5 classes or fewer. Classes
            with an output equal to that of the right one count as larger.
        balanced_accuracy: Mean recall of the classes that have images.
        macro_f1: Mean F1 of the classes that have images or were predicted.
        calibration_error: Expected calibration error, over `bins`.
        temperature: The number to divide logits by for the best calibration on val.
        scaled_calibration_error: The calibration error with that temperature, over `scaled_bins`.
        recall, precision, images: One value per class, in their order.
        confusion: A row per right class, a column per predicted class; None with more than 200 classes.
        bins, scaled_bins: Those of 15 bins of confidence that have images.
    """

    accuracy: float
    accuracy_interval: Interval
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float
    temperature: float
    scaled_calibration_error: float
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    images: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    bins: tuple[Bin, ...]
    scaled_bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ListMetrics(Shown):
    """Metrics of multi-label classification. All but counts are fractions from 0 to 1.

    Attributes:
        map: Mean average precision: the mean over `average_precision`; 0 if no image has any class.
        map_interval: Its interval, by bootstrap over the images.
        micro_f1: F1 over all images and classes together.
        macro_f1: Mean F1 of the classes that have images or were predicted.
        exact_match: Share of images for which every class is predicted right.
        average_precision, recall, precision, images: One value per class, in their order. Average precision and recall
            are None for a class that no image has, precision for a class that was never predicted.
        thresholds: For each class, the probability from which on it is predicted: the one with the best F1 on val. F1,
            exact match, recall and precision depend on them, so on val these are slightly too high.
    """

    map: float
    map_interval: Interval
    micro_f1: float
    macro_f1: float
    exact_match: float
    average_precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    images: tuple[int, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric, and its interval by bootstrap over the images."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class NumberErrors:
    """Errors of predicted numbers.

    Attributes:
        mae: Mean absolute error, in the target's unit.
        rmse: Root of the mean squared error, in the target's unit.
        r2: Coefficient of determination: 1 is perfect, 0 as good as the mean of the targets. Where all targets are
            equal: 1 if each value is right, else 0.
        spearman: Rank correlation, -1 to 1; None where all values or all targets are equal.
    """

    mae: Measurement
    rmse: Measurement
    r2: Measurement
    spearman: Measurement | None


@dataclass(frozen=True, kw_only=True, repr=False)
class NumberMetrics(Shown):
    """Metrics of regression.

    Attributes:
        images: Number of images.
        columns: The errors of each column, in the order of the target's names.
        overall: The means over all columns; those of `mae` and `rmse` are only meaningful if all columns have one unit.
    """

    images: int
    columns: tuple[NumberErrors, ...]
    overall: NumberErrors


Metrics = ClassMetrics | ListMetrics | NumberMetrics
_KINDS: Mapping[str, type[Metrics]] = {"classes": ClassMetrics, "lists": ListMetrics, "numbers": NumberMetrics}


def metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    """All fields as JSON values, and their `kind`."""
    (kind,) = (kind for kind, record in _KINDS.items() if isinstance(metrics, record))
    return {"kind": kind, **asdict(metrics)}


def metrics_from_json(values: Mapping[str, Any]) -> Metrics:
    """Read what `metrics_to_json` wrote. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    rest = {name: value for name, value in values.items() if name != "kind"}
    kind = values["kind"]
    if kind == "classes":
        bins = {name: tuple(Bin(**one) for one in rest[name]) for name in ("bins", "scaled_bins")}
        return ClassMetrics(**{**_tuples(rest), **bins})
    if kind == "lists":
        return ListMetrics(**_tuples(rest))
    if kind != "numbers":
        raise ValueError(f"expected metrics of {', '.join(_KINDS)}, got {kind!r}")
    columns = tuple(_errors(one) for one in rest["columns"])
    return NumberMetrics(**{**rest, "columns": columns, "overall": _errors(rest["overall"])})


def _errors(values: Mapping[str, Any]) -> NumberErrors:
    known: dict[str, Any] = {name: one and Measurement(**_tuples(one)) for name, one in values.items()}
    return NumberErrors(**known)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) for name, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value
