"""What a head is to say of an image: one class, several classes, or numbers.

kind      values of n rows        outputs of a head (n, C)           metric
classes   int64 (n,)              logits of C classes                accuracy
lists     int8 (n, C), 0 and 1    logits of C independent classes    map, mean average precision
numbers   float64 (n, C)          C numbers                          r2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
