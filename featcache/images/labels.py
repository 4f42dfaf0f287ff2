"""Reads the labels that are passed from Python together with arrays or lists of paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from featcache.columns import LABEL, SEPARATOR
from featcache.errors import SourceError
from featcache.images.listing import NamedCells, SourceColumn
from featcache.images.names import ClassNames
from featcache.images.samples import UNLABELLED

MOST_NUMBERS: Final = 1_000_000
"""Every number up to the greatest label is a class, so a huge label would fill the memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The labels and columns of N images.

    Args:
        numbers: The class number of each image, -1 for unlabelled.
        classes: The names of the classes.
        columns: Further columns; one named `label` if the labels are not classes.
    """

    numbers: list[int]
    classes: tuple[str, ...]
    columns: tuple[SourceColumn, ...] = ()


def read_labels(given: Any, count: int, split: str, classes: Sequence[str] | None = None) -> Labels:
    """Read the labels, and other columns, of `count` images.

    Args:
        given: N class names or numbers, None or -1 for unlabelled; N floats (regression targets); (N, C) zeros and ones
            (multi-label), (N, 1) is read as (N,); a mapping of column names to any of these; None: all unlabelled.
        count: N, the number of images.
        split: The name of the split, for messages.
        classes: The names of the classes, if labels are numbers.

    Raises:
        SourceError: The number of labels differs from `count`, or their type is not supported.
    """
    if isinstance(given, Mapping):
        of_label = read_labels(given.get(LABEL), count, split, classes)
        others = tuple(_column(str(name), one, count, split) for name, one in given.items() if name != LABEL)
        return Labels(numbers=of_label.numbers, classes=of_label.classes, columns=of_label.columns + others)
    if given is None:
        return Labels(numbers=[UNLABELLED] * count, classes=_names(classes, []))
    values = _array(given, count, f"labels for the split {split}")
    if values.ndim == 2:
        return _column_alone(count, _lists(LABEL, values, split, classes))
    if values.dtype.kind == "f":
        if np.isinf(values).any():
            raise SourceError(f"expected finite labels for the split {split}, got an infinite one")
        whole = np.where(np.isnan(values), UNLABELLED, values)
        if (whole != np.floor(whole)).any():
            return _column_alone(count, _cells(LABEL, values, split, "numbers"))
        values = whole.astype(np.int64)
    if values.dtype.kind in "iu":
        numbers = [int(number) for number in values]
        if classes is None and max(numbers, default=0) >= MOST_NUMBERS:
            raise SourceError(
                f"expected class numbers below {MOST_NUMBERS:,} for the split {split}, got {max(numbers)}",
                hint="pass numbers that are identifiers as text: labels=[str(one) for one in labels]",
            )
        return Labels(numbers=numbers, classes=_names(classes, numbers))
    return _labels_of_names([None if one is None else str(one) for one in values.tolist()], split, classes)


def unify_labels(known: Mapping[str, Labels]) -> dict[str, Labels]:
    """Give the labels of several splits the same kind: if those of one split are not classes, none are.

    The numbers of a small split may all be whole by chance, so that on their own they would be read as classes.
    """
    kinds = [column.kind for one in known.values() for column in one.columns if column.name == LABEL]
    return {split: _as_column(split, one, kinds[0]) if kinds else one for split, one in known.items()}


def _as_column(split: str, labels: Labels, kind: str | None) -> Labels:
    if not labels.classes:
        return labels
    cells = {split: NamedCells(labels.classes, np.array(labels.numbers, np.int64))}
    column = SourceColumn(name=LABEL, kind=kind, cells=cells)
    return Labels(numbers=[UNLABELLED] * len(labels.numbers), classes=(), columns=(column, *labels.columns))


def _labels_of_names(texts: Sequence[str | None], split: str, classes: Sequence[str] | None) -> Labels:
    class_names = ClassNames()
    for name in classes or ():
        class_names.number(name)
    known = len(class_names.names)
    numbers = [class_names.number(text) for text in texts]
    if classes is not None:
        unknown = class_names.names[known:]
        if unknown:
            raise SourceError(f"expected labels of the split {split} among {', '.join(classes)}, got {unknown[0]!r}")
        return Labels(numbers=numbers, classes=class_names.names)
    names, place = class_names.in_order()
    return Labels(numbers=[int(place[n]) if n >= 0 else UNLABELLED for n in numbers], classes=names)


def _column_alone(count: int, column: SourceColumn) -> Labels:
    return Labels(numbers=[UNLABELLED] * count, classes=(), columns=(column,))


def _names(classes: Sequence[str] | None, numbers: Sequence[int]) -> tuple[str, ...]:
    if classes is not None:
        return tuple(str(name) for name in classes)
    return tuple(str(number) for number in range(max(numbers, default=UNLABELLED) + 1))


def _array(given: Any, count: int, what: str) -> npt.NDArray[Any]:
    try:
        values = np.asarray(given)
        if values.dtype.kind in "OU":
            # As objects: in an array of texts NumPy would turn missing values into the text `nan`.
            values = _with_none(np.asarray(given, object))
    except ValueError as error:
        raise SourceError(f"expected one value for each image, got {what} of different lengths") from error
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2) or len(values) != count:
        raise SourceError(f"expected {count:,} {what}, got shape {values.shape}")
    if values.dtype.kind == "O" and all(one is None or _is_number(one) for one in values.ravel().tolist()):
        values = np.array([np.nan if one is None else one for one in values.tolist()], float)
    if values.dtype.kind not in "iufUO" or (
        values.dtype.kind == "O"
        and not all(one is None or isinstance(one, str) or _is_number(one) for one in values.ravel().tolist())
    ):
        raise SourceError(f"expected class names, whole numbers or floats as {what}, got {values.dtype}")
    return values


def _with_none(values: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Replace the missing values of pandas (NaN, NA, NaT) by None."""
    replaced = values.copy()
    replaced.ravel()[:] = [None if _is_missing(one) else one for one in values.ravel().tolist()]
    return replaced


def _is_missing(value: object) -> bool:
    nan = isinstance(value, float | np.floating) and bool(np.isnan(value))
    return nan or type(value).__name__ in ("NAType", "NaTType")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _column(name: str, given: Any, count: int, split: str) -> SourceColumn:
    values = _array(given, count, f"values of {name} for the split {split}")
    return _lists(name, values, split, None) if values.ndim == 2 else _cells(name, values, split, None)


def _cells(name: str, values: npt.NDArray[Any], split: str, kind: str | None) -> SourceColumn:
    kind = kind or ("numbers" if values.dtype.kind == "f" else None)
    return SourceColumn(name=name, kind=kind, cells={split: [None if v is None else str(v) for v in values.tolist()]})


def _lists(name: str, values: npt.NDArray[Any], split: str, classes: Sequence[str] | None) -> SourceColumn:
    names = _names(classes, [values.shape[1] - 1])
    if len(names) != values.shape[1] or not np.isin(values, (0, 1)).all():
        raise SourceError(
            f"expected {name} of the split {split} as 0 and 1 for each of {len(names)} classes, "
            f"got shape {values.shape}"
        )
    # The leading separator keeps the cell from being empty: "no class" is a value, not missing.
    cells = [SEPARATOR + SEPARATOR.join(names[n] for n in np.flatnonzero(row)) for row in values]
    return SourceColumn(name=name, kind="lists", cells={split: cells})
