"""The target of a head, that is what it predicts for an image: one class, several classes, or numbers.

kind      values of n rows        outputs of a head (n, C)           metric
classes   int64 (n,)              logits of C classes                accuracy
lists     int8 (n, C), 0 and 1    logits of C independent classes    map, mean average precision
numbers   float64 (n, C)          C numbers                          r2

`lists` is several classes of one image (multi-label).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from featcache.columns import LABEL, TARGET_KINDS
from featcache.display import Shown
from featcache.errors import HeadError, InvalidOption, UnknownName

if TYPE_CHECKING:
    from featcache.cache.reader import FeatureCache
    from featcache.cache.splits import CachedSplit

Values = NDArray[Any]

TargetKind = Literal["classes", "lists", "numbers"]
_METRICS = {"classes": "accuracy", "lists": "map", "numbers": "r2"}


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadTarget(Shown):
    """The target of a head.

    Attributes:
        kind: One class per image (`classes`), several classes (`lists`) or `numbers`.
        columns: Names of the cache's targets: one, or several that hold numbers.
        names: Names of the outputs: the classes, or the columns of numbers.
    """

    kind: TargetKind
    columns: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Number of outputs of a head."""
        return len(self.names)

    @property
    def metric(self) -> str:
        """Name of the metric that scores a head: accuracy, map or r2."""
        return _METRICS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {"kind": self.kind, "columns": list(self.columns), "names": list(self.names)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadTarget:
        """Read what `to_json` wrote. Raises KeyError or TypeError for anything else."""
        return cls(kind=values["kind"], columns=tuple(values["columns"]), names=tuple(values["names"]))


def class_target(names: Iterable[str]) -> HeadTarget:
    """The target `label` with these classes."""
    return HeadTarget(kind="classes", columns=(LABEL,), names=tuple(names))


def head_target(cache: FeatureCache, columns: Sequence[str]) -> HeadTarget:
    """The target of a head, from columns of a cache.

    Args:
        cache: The cache with the targets.
        columns: Names of its targets: one, or several that hold numbers.

    Raises:
        UnknownName: The cache has no such target.
        HeadError: The cache has no targets, or the target holds text or groups, which no head can learn.
        InvalidOption: Several targets were named, and one does not hold numbers or is named twice.
    """
    known = cache.targets
    if not known:
        raise HeadError(
            f"{cache.name} has no labels or other targets that a head could learn",
            hint="labels come from folders, one per class, or from a table: `featcache label CACHE table.csv`",
        )
    for name in columns:
        if name not in known:
            raise UnknownName("target", name, known)
    chosen = [known[name] for name in columns]
    kinds = {column.name: column.kind for column in chosen}
    if len(chosen) != 1 and (set(kinds.values()) != {"numbers"} or len(kinds) < len(chosen)):
        got = ", ".join(f"{column.name} ({column.kind})" for column in chosen) or "none"
        raise InvalidOption(
            f"expected one target, or several of numbers, each once, got {got}", hint="train a head for each"
        )
    first = chosen[0]
    if first.kind == "numbers":
        return HeadTarget(kind="numbers", columns=tuple(kinds), names=tuple(kinds))
    if first.kind in TARGET_KINDS:
        return HeadTarget(kind=cast("TargetKind", first.kind), columns=(first.name,), names=first.names)
    raise HeadError(
        f"a head cannot learn {first.name}: it holds {first.kind}",
        hint=f"add it again as another kind: `featcache label ... --kind {first.name}=classes`",
    )


def read_targets(split: CachedSplit, target: HeadTarget) -> tuple[Values, NDArray[np.bool_]]:
    """Read the targets of all rows of a split.

    Returns:
        The values, (N,) or (N, C) by the kind of `target`, and whether each row has a value, bool (N,).

    Raises:
        CacheDamaged: The stored values cannot be read.
        CacheForeign: A stored value is not valid for the target.
    """
    columns = [split.target(name) for name in target.columns]
    if target.kind != "numbers":
        return columns[0].values, columns[0].has_value
    has_value = np.logical_and.reduce([column.has_value for column in columns])
    return np.stack([column.values for column in columns], axis=1), has_value
