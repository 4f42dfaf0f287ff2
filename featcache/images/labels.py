"""Labels as they are handed over from Python beside arrays and lists of paths."""

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
"""Each class number up to the greatest is a class: one of a million millions would fill the memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What is known of N images.

    Args:
        numbers: Their classes, -1 where it is not known.
        classes: The names of these.
        columns: What else is known; one called `label` where labels are no classes.
    """

    numbers: list[int]
    classes: tuple[str, ...]
    columns: tuple[SourceColumn, ...] = ()


def read_labels(given: Any, count: int, split: str, classes: Sequence[str] | None = None) -> Labels:
    """What is known of `count` images.

    Args:
        given: N class names or numbers, None or -1 for unlabelled; N floats (a number to be predicted); (N, C) 0 and 1
            (several classes), (N, 1) as (N,); a mapping of column names to any of these; None: nothing is known.
        count: N.
        split: Named in messages.
        classes: The names of classes that are numbers.

    Raises:
        SourceError: There are more or fewer, or they are of another kind.
    """
    if isinstance(given, Mapping):
        of_label = read_labels(given.get(LABEL), count, split, classes)
        others = tuple(_column(str(name), one, count, split) for name, one in given.items() if name != LABEL)
        return Labels(numbers=of_label.numbers, classes=of_label.classes, columns=of_label.columns + others)
    if given is None:
        return Labels(numbers=[UNLABELLED] * count, classes=_names(classes, []))
    values = _array(given, count, f"labels for the split {split}")
    if values.ndim == 2:
        return _unlabelled(count, _lists(LABEL, values, split, classes))
    if values.dtype.kind == "f":
        if np.isinf(values).any():
            raise SourceError(f"expected finite labels for the split {split}, got an infinite one")
        whole = np.where(np.isnan(values), UNLABELLED, values)
        if (whole != np.floor(whole)).any():
            return _unlabelled(count, _cells(LABEL, values, split, "numbers"))
        values = whole.astype(np.int64)
    if values.dtype.kind in "iu":
        numbers = [int(number) for number in values]
        if classes is None and max(numbers, default=0) >= MOST_NUMBERS:
            raise SourceError(
                f"expected class numbers below {MOST_NUMBERS:,} for the split {split}, got {max(numbers)}",
                hint="numbers that count nothing are names: labels=[str(one) for one in labels]",
            )
        return Labels(numbers=numbers, classes=_names(classes, numbers))
    return _named([None if one is None else str(one) for one in values.tolist()], split, classes)


def labels_alike(known: Mapping[str, Labels]) -> dict[str, Labels]:
    """The labels of several splits as one kind: where those of one are no classes, those of none are.

    By chance all numbers of a small split may be whole, and would be classes if it stood alone.
    """
    kinds = [column.kind for one in known.values() for column in one.columns if column.name == LABEL]
    return {split: _as_column(split, one, kinds[0]) if kinds else one for split, one in known.items()}


def _as_column(split: str, labels: Labels, kind: str | None) -> Labels:
    if not labels.classes:
        return labels
    cells = {split: NamedCells(labels.classes, np.array(labels.numbers, np.int64))}
    column = SourceColumn(name=LABEL, kind=kind, cells=cells)
    return Labels(numbers=[UNLABELLED] * len(labels.numbers), classes=(), columns=(column, *labels.columns))


def _named(texts: Sequence[str | None], split: str, classes: Sequence[str] | None) -> Labels:
    met = ClassNames()
    for name in classes or ():
        met.number(name)
    known = len(met.names)
    numbers = [met.number(text) for text in texts]
    if classes is not None:
        strange = met.names[known:]
        if strange:
            raise SourceError(f"expected labels of the split {split} among {', '.join(classes)}, got {strange[0]!r}")
        return Labels(numbers=numbers, classes=met.names)
    names, place = met.in_order()
    return Labels(numbers=[int(place[n]) if n >= 0 else UNLABELLED for n in numbers], classes=names)


def _unlabelled(count: int, column: SourceColumn) -> Labels:
    return Labels(numbers=[UNLABELLED] * count, classes=(), columns=(column,))


def _names(classes: Sequence[str] | None, numbers: Sequence[int]) -> tuple[str, ...]:
    if classes is not None:
        return tuple(str(name) for name in classes)
    return tuple(str(number) for number in range(max(numbers, default=UNLABELLED) + 1))


def _array(given: Any, count: int, what: str) -> npt.NDArray[Any]:
    try:
        values = np.asarray(given)
        if values.dtype.kind in "OU":
            # As objects: beside texts NumPy makes the text `nan` of what is missing.
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
    """The same with None for whatever pandas writes where there is nothing: NaN, NA, NaT."""
    found = values.copy()
    found.ravel()[:] = [None if _is_missing(one) else one for one in values.ravel().tolist()]
    return found


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
    # The leading separator: no class at all is an answer too.
    cells = [SEPARATOR + SEPARATOR.join(names[n] for n in np.flatnonzero(row)) for row in values]
    return SourceColumn(name=name, kind="lists", cells={split: cells})
