"""How good a head is on one part, in more words than a Score: a record for each kind of target.

No number is NaN: where there is nothing to divide by it is None. Intervals hold 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose confidence lies in (low, high]; the first bin has 0 as well.

    Attributes:
        low, high: The bin's ends, fractions.
        images: How many there are.
        confidence, accuracy: Their means, fractions.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """Of a head that tells classes apart. Everything but counts and the temperature is a fraction from 0 to 1.

    Attributes:
        accuracy: The share of images whose class has the largest output.
        accuracy_interval: Wilson's.
        top5: None with 5 classes or fewer. Right is a class that fewer than five others reach.
        balanced_accuracy: The mean recall of the classes that are there.
        macro_f1: The mean F1 of the classes that are there or were said.
        calibration_error: Expected, over the bins of confidence in `bins`.
        temperature: What the logits have to be divided by to be calibrated on val.
        scaled_calibration_error: What is left of the error then, over `scaled_bins`.
        recall, precision, images: A value a class, in their order.
        confusion: A row a class, a column for what was said; None with more than 200 classes.
        bins, scaled_bins: Of 15 bins of confidence those that hold images.
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


@dataclass(frozen=True, kw_only=True)
class ListMetrics:
    """Of a head that says of each class whether an image has it. Everything but counts is a fraction from 0 to 1.

    Attributes:
        map: Mean average precision: the mean of those in `average_precision`; 0 where no image has any class.
        map_interval: By bootstrap over the images.
        micro_f1: F1 of all answers together.
        macro_f1: The mean F1 of the classes that are there or were said.
        exact_match: The share of images of which every class is right.
        average_precision, recall, precision, images: A value a class, in their order. Average precision and recall
            are None for a class that no image has, precision for one that was said of none.
        thresholds: The probability a class needs to be said: on val the one with the best F1. What is said of F1,
            exact matches, recall and precision rests on them, so on val it is a little too good.
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
    """A number, and its interval by bootstrap over the images."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class NumberErrors:
    """How far values are from the targets.

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


@dataclass(frozen=True, kw_only=True)
class NumberMetrics:
    """Of a head that gives numbers.

    Attributes:
        images: How many there are.
        columns: The errors of each column, in the order of the target's names.
        overall: The means over all columns; of `mae` and `rmse` they mean something only if all have one unit.
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
    """What `metrics_to_json` described. Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
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
