"""Which rows go to which side, so that every class stands on both and no group does. NumPy alone.

What is moved is a unit: a group of rows that must not be separated, or a single row. What has to be spread evenly is a
mark: a class, one of several classes, or a stretch of numbers. A unit belongs to the stratum of the rarest mark that
it has, because a common one is spread well by any cut; within a stratum units stand by size, and of equal size in
random order, and every side takes its share of them at equal distances. With one class a row and no groups that is
plain stratification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.rows.target import TargetKind

Rows = NDArray[np.int64]
# Numbers are spread over so many stretches with as many rows in each, if there are rows enough.
MOST_STRETCHES = 10
# In each stretch there are so many rows at least.
FEWEST_IN_STRETCH = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Marked:
    """Units, and which marks each has.

    Attributes:
        unit: int64 (n,) of each row, from 0 to `units` - 1; None where every row is its own.
        units: How many units there are.
        of: int64 (m,) the unit of each pair of unit and mark; pairs stand once. None where each unit has one mark.
        mark: int64 (m,) the mark of each pair.
        marks: How many marks there may be.
        teaches: The kind of what they stand for.
    """

    unit: Rows | None
    units: int
    of: Rows | None
    mark: Rows
    marks: int
    teaches: TargetKind

    def counts(self) -> Rows:
        """How many units have each mark: (marks,)."""
        return np.bincount(self.mark, minlength=self.marks)

    def sizes(self) -> Rows | None:
        """How many rows each unit has; None where it is one each."""
        return None if self.unit is None else np.bincount(self.unit, minlength=self.units)

    def strata(self) -> Rows:
        """The rarest mark of each unit, (units,); `marks` for a unit without one."""
        if self.of is None:
            return self.mark.copy()
        counts = self.counts()
        by_rarity = np.argsort(counts, kind="stable")
        # A mark of a single unit cannot be spread at all.
        by_rarity = np.roll(by_rarity, -int(np.count_nonzero(counts < 2)))
        rank = np.empty_like(by_rarity)
        rank[by_rarity] = np.arange(self.marks)
        rarest = np.full(self.units, self.marks)
        np.minimum.at(rarest, self.of, rank[self.mark])
        return np.asarray(np.append(by_rarity, self.marks)[rarest])

    def pinned(self, wanted: int) -> NDArray[np.bool_]:
        """Which units have a mark that no other has, so that they have to teach it: (units,).

        Of several classes none, where the others would not do for `wanted` units of val.
        """
        assert self.of is not None
        pinned = np.zeros(self.units, np.bool_)
        if self.teaches != "numbers":
            pinned[self.of[self.counts()[self.mark] == 1]] = True
        few = self.teaches == "lists" and self.units - np.count_nonzero(pinned) < 2 * wanted
        return np.zeros_like(pinned) if few else pinned

    def on_side(self, side: NDArray[np.bool_]) -> Rows:
        """How many units of one side (units,) have each mark."""
        return np.bincount(self.mark[side if self.of is None else side[self.of]], minlength=self.marks)

    def of_rows(self, units: Any) -> Any:
        """Values of units (units,) as values of their rows (n,)."""
        return units if self.unit is None else units[self.unit]


def marked(targets: NDArray[Any], kind: TargetKind, marks: int, unit: Rows | None) -> Marked:
    """The marks of rows.

    Args:
        targets: What a head is to learn, (n,) or (n, C); see rows/target.py.
        kind: Their kind.
        marks: How many outputs a head has.
        unit: int64 (n,) of each row, from 0 without gaps; None where every row is its own.
    """
    row: Rows | None = None
    if kind == "lists":
        row, mark = np.nonzero(targets)
    elif kind == "numbers":
        row, mark, marks = _stretches(targets)
    else:
        mark = targets.astype(np.int64, copy=False)
    if unit is None:
        return Marked(unit=None, units=len(targets), of=row, mark=mark, marks=marks, teaches=kind)
    pairs = np.unique((unit if row is None else unit[row]) * marks + mark)
    units = int(unit.max()) + 1
    return Marked(unit=unit, units=units, of=pairs // marks, mark=pairs % marks, marks=marks, teaches=kind)


def _stretches(targets: NDArray[Any]) -> tuple[Rows | None, Rows, int]:
    """Rows by the order of their numbers: the row and the stretch of each pair, and how many stretches there are."""
    rows, columns = targets.shape
    stretches = max(1, min(MOST_STRETCHES, rows // FEWEST_IN_STRETCH))
    marks = np.empty((columns, rows), np.int64)
    for column in range(columns):
        marks[column, np.argsort(targets[:, column], kind="stable")] = np.arange(rows) * stretches // rows
        marks[column] += column * stretches
    if columns == 1:
        return None, marks[0], stretches
    return np.tile(np.arange(rows), columns), marks.ravel(), columns * stretches


def stratified_share(rows: Marked, share: float, *, seed: int) -> NDArray[np.bool_]:
    """Which units go to the smaller side, val: (units,); none where that is not possible.

    Of every mark that two units have, at least one is on either side, as far as whole units allow it. A unit with a
    mark of its own stays in train; of several classes only as long as that leaves units enough for val.

    Args:
        rows: The units and their marks.
        share: How much of them val should have, above 0 and below 1.
        seed: For whatever order is random.
    """
    random = np.random.default_rng(seed)
    strata = rows.strata()
    if rows.of is not None:
        strata[rows.pinned(round(rows.units * share))] = rows.marks + 1
    order = _ordered(strata, rows.sizes(), random)
    counts = np.bincount(strata, minlength=rows.marks + 2)
    given = _apportioned(counts[:-1], share, round(rows.units * share))
    in_val = np.zeros(rows.units, np.bool_)
    start = 0
    for count, wanted in zip(counts.tolist(), given.tolist(), strict=False):
        if wanted:
            # At equal distances: so many steps of a whole number are made at `count` places.
            place = np.arange(count) * wanted + int(random.integers(count))
            in_val[order[start : start + count][(place + wanted) // count > place // count]] = True
        start += count
    if rows.of is not None:
        _mend(rows, in_val)
    return in_val


def _ordered(strata: Rows, sizes: Rows | None, random: np.random.Generator) -> Rows:
    """The units by stratum, then by size, then at random."""
    order = random.permutation(len(strata))
    if sizes is not None:
        order = order[np.argsort(sizes[order], kind="stable")]
    return order[np.argsort(strata[order], kind="stable")]


def _apportioned(counts: Rows, share: float, together: int) -> Rows:
    """How many units of each stratum go to val: near the share of each, and near `together` of all.

    A stratum of two or more has one at least on either side, of a single unit none. What is left after rounding down
    goes to the largest remainders.
    """
    wanted = counts * share
    most = np.maximum(counts - 1, 0)
    given: Rows = np.clip(np.floor(wanted).astype(np.int64), np.minimum(1, most), most)
    left = together - int(given.sum())
    if left > 0:
        fitting = np.flatnonzero(given < np.minimum(most, np.ceil(wanted)))
        given[fitting[np.argsort(-(wanted - given)[fitting], kind="stable")[:left]]] += 1
    return given


def _mend(rows: Marked, in_val: NDArray[np.bool_]) -> None:
    """Move single units until every mark that two units have stands on both sides, where that is possible.

    A mark may have gone to one side with rarer ones. Train is mended first, also at val's expense.
    """
    counts = rows.counts()
    for lacking in (False, True):
        missing = np.flatnonzero((rows.on_side(in_val == lacking) == 0) & (counts >= 2))
        for mark in missing[np.argsort(counts[missing], kind="stable")].tolist():
            _move_one(rows, in_val, mark, to_val=lacking)


def _move_one(rows: Marked, in_val: NDArray[np.bool_], mark: int, *, to_val: bool) -> None:
    """Move the smallest unit with a mark to the side that lacks it, if possible one whose marks all stay there too."""
    assert rows.of is not None
    candidates = rows.of[rows.mark == mark]
    if (in_val[candidates] == to_val).any():
        return
    # Of all marks of a unit the fewest that are on its side.
    there = rows.on_side(in_val != to_val)
    fewest = np.full(rows.units, np.iinfo(np.int64).max)
    np.minimum.at(fewest, rows.of, there[rows.mark])
    sizes = rows.sizes()
    small = np.zeros(len(candidates)) if sizes is None else sizes[candidates]
    best = candidates[np.lexsort((small, fewest[candidates] <= 1))[0]]
    if fewest[best] > 1 or (not to_val and np.count_nonzero(in_val) > 1):
        in_val[best] = to_val


def stratified_folds(rows: Marked, folds: int, *, seed: int) -> Rows:
    """Which fold each unit is held out by, from 0: (units,). Units are dealt out one after another, by stratum."""
    random = np.random.default_rng(seed)
    order = _ordered(rows.strata(), rows.sizes(), random)
    # The largest first, so that the last ones even out what those weigh.
    dealt = np.empty(rows.units, np.int64)
    dealt[order[::-1]] = np.arange(rows.units) % folds
    return dealt
