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

    def owns(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these units are his: (n,) -> (n,) bool."""
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

    def owns(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        mine: npt.NDArray[np.bool_] = units % self.of == self.number
        return mine

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Units:
    """Units named one by one: what a task of a cluster does."""

    numbers: Collection[int]

    def owns(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        mine: npt.NDArray[np.bool_] = np.isin(units, list(self.numbers))
        return mine
