"""What a head is to say of an image: one class, several classes, or numbers.

kind      values of n rows        outputs of a head (n, C)           metric
classes   int64 (n,)              logits of C classes                accuracy
lists     int8 (n, C), 0 and 1    logits of C independent classes    map, mean average precision
numbers   float64 (n, C)          C numbers                          r2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from featcache.columns import LABEL
from featcache.errors import HeadError, InvalidOption, UnknownName

if TYPE_CHECKING:
    from featcache.cache.reader import FeatureCache
    from featcache.cache.splits import CachedSplit

Values = NDArray[Any]

TargetKind = Literal["classes", "lists", "numbers"]
TARGET_KINDS: tuple[str, ...] = get_args(TargetKind)
_METRICS = {"classes": "accuracy", "lists": "map", "numbers": "r2"}


@dataclass(frozen=True, kw_only=True)
class HeadTarget:
    """The target of a head.

    Attributes:
        kind: Of values: one class (`classes`), several classes (`lists`) or `numbers`.
        columns: The names of the cache's targets: one, or several of numbers side by side.
        names: Of the outputs: the classes, or the columns of numbers.
    """

    kind: TargetKind
    columns: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """How many outputs a head has."""
        return len(self.names)

    @property
    def metric(self) -> str:
        """What a score's value is."""
        return _METRICS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {"kind": self.kind, "columns": list(self.columns), "names": list(self.names)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadTarget:
        """What `to_json` described. Raises KeyError or TypeError for anything else."""
        return cls(kind=values["kind"], columns=tuple(values["columns"]), names=tuple(values["names"]))


def class_target(names: Iterable[str]) -> HeadTarget:
    """The target `label` with these classes."""
    return HeadTarget(kind="classes", columns=(LABEL,), names=tuple(names))


def head_target(cache: FeatureCache, columns: Sequence[str]) -> HeadTarget:
    """What a head on a cache is to say.

    Args:
        cache: It has the targets.
        columns: Which of them: one, or several of numbers.

    Raises:
        UnknownName: The cache has no such target.
        HeadError: It has none at all, or a head cannot learn it.
        InvalidOption: Several were named, and not all hold numbers, or one was named twice.
    """
    known = cache.targets
    if not known:
        raise HeadError(
            f"{cache.name} knows nothing of its images that a head could learn",
            hint="labels come from folders, one a class, or from a table: `featcache label CACHE table.csv`",
        )
    for name in columns:
        if name not in known:
            raise UnknownName("target", name, known)
    chosen = [known[name] for name in columns]
    kinds = {column.name: column.kind for column in chosen}
    if len(chosen) != 1 and (set(kinds.values()) != {"numbers"} or len(kinds) < len(chosen)):
        found = ", ".join(f"{column.name} ({column.kind})" for column in chosen) or "none"
        raise InvalidOption(
            f"expected one target, or several of numbers, each once, got {found}", hint="train a head for each"
        )
    first = chosen[0]
    if first.kind == "numbers":
        return HeadTarget(kind="numbers", columns=tuple(kinds), names=tuple(kinds))
    if first.kind in TARGET_KINDS:
        return HeadTarget(kind=cast("TargetKind", first.kind), columns=(first.name,), names=first.names)
    raise HeadError(
        f"a head cannot learn {first.name}: it holds {first.kind}",
        hint=f"add it again as something else: `featcache label ... --kind {first.name}=classes`",
    )


def read_targets(split: CachedSplit, target: HeadTarget) -> tuple[Values, NDArray[np.bool_]]:
    """The values of all rows of a split, of the shape that `target` has, and which rows have one: (N,).

    Raises CacheDamaged, and CacheForeign for values that are none of the target's.
    """
    found = [split.target(name) for name in target.columns]
    if target.kind != "numbers":
        return found[0].values, found[0].has_value
    return np.stack([one.values for one in found], axis=1), np.logical_and.reduce([one.has_value for one in found])
