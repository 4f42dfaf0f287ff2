"""The images of an extraction, cut into units: each is one segment, computed by one worker.

Every worker derives the same units from the manifest, without communication. A unit that is computed twice is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.cache.manifest import MOST_SEGMENTS, Segment
from featcache.errors import InvalidOption

Numbers = npt.NDArray[np.int64]

# The target duration of a segment: so much work is lost with an unfinished one.
_SEGMENT_S = 30.0
_LEAST_ROWS, _MOST_ROWS = 64, 65_536
# Operations per second, assumed where the speed is not known.
_ASSUMED_FLOPS = 60e9


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """One segment of an extraction.

    Args:
        segment: Its file.
        images: The numbers of its images, ascending: (n,).
    """

    segment: Segment
    images: Numbers

    def __len__(self) -> int:
        return len(self.images)


def units_of(images: Numbers, rows_of_splits: dict[str, int], *, segment_rows: int) -> list[Unit]:
    """Cut images into units, never across splits.

    Args:
        images: Their numbers, ascending: (n,).
        rows_of_splits: How many images each split has, in order.
        segment_rows: How many images a unit has; the last one of a split may have fewer.

    Raises:
        InvalidOption: There would be too many segments.
    """
    units = list(_cut(images, rows_of_splits, segment_rows))
    if len(units) > MOST_SEGMENTS:
        raise InvalidOption(
            f"{segment_rows:,} rows per segment make {len(units):,} segments, expected at most {MOST_SEGMENTS}",
            hint=f"--segment-rows {least_segment_rows(len(images))} or more",
        )
    return units


def _cut(images: Numbers, rows_of_splits: dict[str, int], step: int) -> Iterator[Unit]:
    ends = np.cumsum(list(rows_of_splits.values()))
    for split, some in zip(rows_of_splits, np.split(images, np.searchsorted(images, ends[:-1])), strict=True):
        for first in range(0, len(some), step):
            own = some[first : first + step]
            yield Unit(segment=Segment.plan(split, first, len(own)), images=own)


def least_segment_rows(rows: int) -> int:
    """The smallest number of rows per segment that does not make too many segments."""
    # The last segment of a split may be shorter, which can add one segment per split.
    return -(-rows // (MOST_SEGMENTS - 8))


def segment_rows_for(images_per_s: float, rows: int) -> int:
    """Rows per segment for `rows` rows in all: about half a minute of work, a power of two."""
    affordable = min(_MOST_ROWS, max(_LEAST_ROWS, 2 ** int(np.log2(max(1.0, _SEGMENT_S * images_per_s)))))
    return max(int(affordable), least_segment_rows(rows))


def default_speed(flops_per_image: float) -> float:
    """Images/s to assume where nothing has been measured."""
    return _ASSUMED_FLOPS / max(flops_per_image, 1.0)


# --- several workers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every `of`-th unit, beginning with `number`: the share of one job of an array. Raises InvalidOption."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise InvalidOption(f"expected --shard i/n with i from 0 to n - 1, got {self.number}/{self.of}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse text such as `0/8` or `7/8`. Raises InvalidOption."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise InvalidOption(f"expected --shard i/n, such as 0/8 to 7/8, got {text!r}")
        return cls(number=int(found[1]), of=int(found[2]))

    def units(self, count: int) -> Numbers:
        """Indices of the units in this share, of `count` units, ascending: int64 (n,)."""
        return np.arange(self.number, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def units_in(units: Sequence[Unit], share: Shard | None) -> list[Unit]:
    """The units of a share; all for None."""
    return list(units) if share is None else [units[number] for number in share.units(len(units)).tolist()]
