"""Which rows of an extraction are whose, when several machines or processes do it together.

The plan's rows are cut into units of one part's length, numbered from 0, whatever stands already: so everybody cuts
alike without asking anybody. A unit done twice is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.errors import InvalidOption


class Share(Protocol):
    """Somebody's part of the work."""

    def units(self, count: int) -> npt.NDArray[np.int64]:
        """Which of the units 0 to `count` - 1 are his, ascending: (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every `of`-th unit, beginning with `number`: what one job of an array does. Raises InvalidOption."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise InvalidOption(f"expected --shard i/n with i from 0 to n - 1, got {self.number}/{self.of}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`0/8` to `7/8`. Raises InvalidOption."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise InvalidOption(f"expected --shard i/n, such as 0/8 to 7/8, got {text!r}")
        return cls(number=int(found[1]), of=int(found[2]))

    def units(self, count: int) -> npt.NDArray[np.int64]:
        return np.arange(self.number, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Units:
    """Units named one by one: what a task of a cluster does."""

    numbers: Collection[int]

    def units(self, count: int) -> npt.NDArray[np.int64]:
        return np.array(sorted({number for number in self.numbers if 0 <= number < count}), np.int64)


def rows_in(units: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], part_rows: int) -> npt.NDArray[np.int64]:
    """Those of the ascending `rows` (n,) that lie in these units.

    What is done for one unit must not grow with the plan: a cluster's task does this for each.
    """
    begin, end = (np.searchsorted(rows, bounds * part_rows).tolist() for bounds in (units, units + 1))
    return np.concatenate([np.empty(0, np.int64), *(rows[a:b] for a, b in zip(begin, end, strict=True))])


def rows_of(units: npt.NDArray[np.int64], total: int, part_rows: int) -> int:
    """How many of a plan's `total` rows these units have."""
    return int((np.minimum((units + 1) * part_rows, total) - units * part_rows).sum())
