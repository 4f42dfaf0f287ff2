"""Which column of a table of rows holds the images, and which the labels: found by their types, never guessed.

The types are those of the package datasets, which Parquet files written by it carry too. Images are the column of
type Image; where there is none, the one of {bytes, path}, else the one of binary values. Labels are the column of type
ClassLabel; where there is none, one called label or class. Two that might be meant are an error that lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featcache.errors import SourceError
from featcache.images.class_names import ClassNames
from featcache.images.source import UNLABELLED

LABEL_NAMES: Final = ("label", "labels", "class")
_BINARY: Final = ("binary", "large_binary")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`images`: the column of the images; `labels`: that of the labels, None where there is none.

    `classes`: names that the label column itself carries.
    """

    images: str
    labels: str | None
    classes: tuple[str, ...] | None = None


def find_columns(features: Mapping[str, Any], where: str, *, image: str | None, label: str | None) -> Columns:
    """The columns of `features` (a datasets.Features); `image`, `label`: names that somebody gave, else None.

    Raises SourceError, naming `where`, for a column that is not there, none that holds images, or several.
    """
    images = _named(features, image, where) or _only(_image_columns(features), "image", where, features)
    if images is None:
        raise SourceError(f"{where}: no column holds images; it has {_listed(features)}", hint="name it: ?image=COLUMN")
    labels = _named(features, label, where) or _only(_label_columns(features), "label", where, features)
    names = getattr(features[labels], "names", None) if labels else None
    return Columns(images=images, labels=labels, classes=None if names is None else tuple(map(str, names)))


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    kinds: tuple[Callable[[Any], bool], ...] = (
        lambda kind: type(kind).__name__ == "Image",
        lambda kind: isinstance(kind, dict) and "bytes" in kind,
        lambda kind: getattr(kind, "dtype", None) in _BINARY,
    )
    for is_kind in kinds:
        found = [name for name, kind in features.items() if is_kind(kind)]
        if found:
            return found
    return []


def _label_columns(features: Mapping[str, Any]) -> list[str]:
    found = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    return found or [name for name in features if name.lower() in LABEL_NAMES]


def _named(features: Mapping[str, Any], name: str | None, where: str) -> str | None:
    if name is not None and name not in features:
        raise SourceError(f"{where}: no column {name!r}; it has {_listed(features)}")
    return name


def _only(found: Sequence[str], kind: str, where: str, features: Mapping[str, Any]) -> str | None:
    if len(found) > 1:
        raise SourceError(
            f"{where}: the columns {', '.join(found)} may all be meant as {kind}",
            hint=f"name one of them: {where.split('?')[0]}?{kind}={found[0]}",
        )
    return found[0] if found else None


def _listed(features: Iterable[str]) -> str:
    return ", ".join(features) or "no columns"


def class_numbers(
    values: Mapping[str, Sequence[Any]], classes: tuple[str, ...] | None, where: str
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """By split the class number of each value, -1 for None, and the classes' names.

    Where `classes` are known the values are their numbers, else names or numbers, which become names in their order.
    Raises SourceError for a number without a class.
    """
    if classes is not None:
        numbers = {split: [UNLABELLED if one is None else int(one) for one in some] for split, some in values.items()}
        strange = next((n for some in numbers.values() for n in some if not UNLABELLED <= n < len(classes)), None)
        if strange is not None:
            raise SourceError(f"{where}: expected labels from -1 to {len(classes) - 1}, got {strange}")
        return numbers, classes
    met = ClassNames()
    as_met = {split: [met.number(None if one is None else str(one)) for one in some] for split, some in values.items()}
    names, place = met.in_order()
    return {split: [int(place[n]) if n >= 0 else UNLABELLED for n in some] for split, some in as_met.items()}, names
