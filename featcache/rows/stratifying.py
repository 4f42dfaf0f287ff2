"""Stratified splits into train and val, and into folds, that keep groups together. Uses NumPy only.

A unit is what is assigned: a group of rows that must not be separated, or a single row. A label is what must be spread
evenly: a class, one of several classes, or a bin of numbers. A unit belongs to the stratum of its rarest label, because
any split spreads a common label well. Within a stratum, units are sorted by size (in random order where sizes are
equal), and each side takes its share of them at equal distances. With one class per row and no groups, this is plain
stratification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.rows.target import TargetKind

Rows = NDArray[np.int64]
# Numbers are divided into at most this many bins with equally many rows.
MOST_BINS = 10
# The fewest units for each bin: with fewer, a bin could hold a single unit, which val cannot have.
FEWEST_IN_BIN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitLabels:
    """Units, and the labels of each, as pairs of a unit and a label without repetition.

    Attributes:
        unit: int64 (n,) the unit of each row, from 0 to `units` - 1; None where every row is a unit.
        units: Number of units.
        pair_units: int64 (m,) the unit of each pair; None where each unit has exactly one label.
        pair_labels: int64 (m,) the label of each pair.
        labels: Number of possible labels.
        kind: The kind of the targets.
    """

    unit: Rows | None
    units: int
    pair_units: Rows | None
    pair_labels: Rows
    labels: int
    kind: TargetKind

    def counts(self) -> Rows:
        """Number of units with each label: int64 (labels,)."""
        return np.bincount(self.pair_labels, minlength=self.labels)

    def sizes(self) -> Rows | None:
        """Number of rows of each unit: int64 (units,); None where each has one."""
        return None if self.unit is None else np.bincount(self.unit, minlength=self.units)

    def strata(self) -> Rows:
        """The rarest label of each unit: int64 (units,); `labels` for a unit without a label."""
        if self.pair_units is None:
            return self.pair_labels.copy()
        counts = self.counts()
        by_rarity = np.argsort(counts, kind="stable")
        # A label of a single unit cannot be spread at all.
        by_rarity = np.roll(by_rarity, -int(np.count_nonzero(counts < 2)))
        rank = np.empty_like(by_rarity)
        rank[by_rarity] = np.arange(self.labels)
        rarest = np.full(self.units, self.labels)
        np.minimum.at(rarest, self.pair_units, rank[self.pair_labels])
        return np.asarray(np.append(by_rarity, self.labels)[rarest])

    def must_train(self, wanted: int) -> NDArray[np.bool_]:
        """Whether each unit has to be in train, because no other unit has one of its labels: bool (units,).

        For several classes per image, none has to if the other units are too few for `wanted` units of val.
        """
        assert self.pair_units is not None
        must_train = np.zeros(self.units, np.bool_)
        must_train[self.pair_units[self.counts()[self.pair_labels] == 1]] = True
        few = self.kind == "lists" and self.units - np.count_nonzero(must_train) < 2 * wanted
        return np.zeros_like(must_train) if few else must_train

    def on_side(self, side: NDArray[np.bool_]) -> Rows:
        """Number of units with each label on one side, given as bool (units,): int64 (labels,)."""
        return np.bincount(
            self.pair_labels[side if self.pair_units is None else side[self.pair_units]], minlength=self.labels
        )

    def spread_to_rows(self, units: Any) -> Any:
        """Give each row the value of its unit: (units,) -> (n,). A unit is a group of rows, or a single row."""
        return units if self.unit is None else units[self.unit]


def label_units(targets: NDArray[Any], kind: TargetKind, labels: int, unit: Rows | None) -> UnitLabels:
    """The units of some rows, and their labels.

    Args:
        targets: Targets of the rows, (n,) or (n, C); see rows/target.py.
        kind: Kind of the targets.
        labels: Number of outputs of a head.
        unit: int64 (n,) the unit of each row, numbered from 0 without gaps; None where every row is a unit.
    """
    units = len(targets) if unit is None else int(unit.max()) + 1
    row: Rows | None = None
    if kind == "lists":
        row, label = np.nonzero(targets)
    elif kind == "numbers":
        row, label, labels = _number_bins(targets, units)
    else:
        label = targets.astype(np.int64, copy=False)
    if unit is None:
        return UnitLabels(unit=None, units=units, pair_units=row, pair_labels=label, labels=labels, kind=kind)
    pairs = np.unique((unit if row is None else unit[row]) * labels + label)
    return UnitLabels(
        unit=unit, units=units, pair_units=pairs // labels, pair_labels=pairs % labels, labels=labels, kind=kind
    )


def _number_bins(targets: NDArray[Any], units: int) -> tuple[Rows | None, Rows, int]:
    """Bins of rows by the order of their numbers: the row and the bin of each pair, and the number of bins."""
    rows, columns = targets.shape
    bins = max(1, min(MOST_BINS, units // FEWEST_IN_BIN))
    labels = np.empty((columns, rows), np.int64)
    for column in range(columns):
        labels[column, np.argsort(targets[:, column], kind="stable")] = np.arange(rows) * bins // rows
        labels[column] += column * bins
    if columns == 1:
        return None, labels[0], bins
    return np.tile(np.arange(rows), columns), labels.ravel(), columns * bins


def stratify_share(rows: UnitLabels, share: float, *, seed: int) -> NDArray[np.bool_]:
    """Whether each unit goes to val: bool (units,); all False where no split is possible.

    Every label of at least two units is on both sides, as far as whole units allow it. A unit with a label of its own
    stays in train; for several classes per image only if enough other units are left for val.

    Args:
        rows: The units and their labels.
        share: Share of the units for val, above 0 and below 1.
        seed: Seed of the random order.
    """
    random = np.random.default_rng(seed)
    strata = rows.strata()
    if rows.pair_units is not None:
        strata[rows.must_train(round(rows.units * share))] = rows.labels + 1
    order = _order_units(strata, rows.sizes(), random)
    counts = np.bincount(strata, minlength=rows.labels + 2)
    given = _apportion(counts[:-1], share, round(rows.units * share))
    in_val = np.zeros(rows.units, np.bool_)
    start = 0
    for count, wanted in zip(counts.tolist(), given.tolist(), strict=False):
        if wanted:
            # At equal distances: `wanted` of the `count` places are those where the quotient rises by one.
            place = np.arange(count) * wanted + int(random.integers(count))
            in_val[order[start : start + count][(place + wanted) // count > place // count]] = True
        start += count
    if rows.pair_units is not None:
        _repair(rows, in_val)
    return in_val


def _order_units(strata: Rows, sizes: Rows | None, random: np.random.Generator) -> Rows:
    """The units by stratum, then by size, then at random."""
    order = random.permutation(len(strata))
    if sizes is not None:
        order = order[np.argsort(sizes[order], kind="stable")]
    return order[np.argsort(strata[order], kind="stable")]


def _apportion(counts: Rows, share: float, together: int) -> Rows:
    """Number of val units of each stratum: close to `share` of each, and close to `together` in total.

    A stratum of two or more units has at least one on each side; a single unit stays in train. The units left over
    after rounding down go to the strata with the largest remainders.
    """
    wanted = counts * share
    most = np.maximum(counts - 1, 0)
    given: Rows = np.clip(np.floor(wanted).astype(np.int64), np.minimum(1, most), most)
    left = max(0, together - int(given.sum()))
    fitting = np.flatnonzero(given < np.minimum(most, np.ceil(wanted)))
    given[fitting[np.argsort(-(wanted - given)[fitting], kind="stable")[:left]]] += 1
    return given


def _repair(rows: UnitLabels, in_val: NDArray[np.bool_]) -> None:
    """Move single units until every label of at least two units is on both sides, where that is possible.

    A unit is placed by its rarest label, so its other labels may all be on one side. Labels that train lacks are moved
    first, even if val then lacks them.
    """
    counts = rows.counts()
    for lacking in (False, True):
        missing = np.flatnonzero((rows.on_side(in_val == lacking) == 0) & (counts >= 2))
        for label in missing[np.argsort(counts[missing], kind="stable")].tolist():
            _move_one(rows, in_val, label, to_val=lacking)


def _move_one(rows: UnitLabels, in_val: NDArray[np.bool_], label: int, *, to_val: bool) -> None:
    """Move the smallest unit with a label to the side that lacks it, if possible without removing another label."""
    assert rows.pair_units is not None
    candidates = rows.pair_units[rows.pair_labels == label]
    if (in_val[candidates] == to_val).any():
        return
    # For each unit, the smallest count of any of its labels on its side.
    there = rows.on_side(in_val != to_val)
    fewest = np.full(rows.units, np.iinfo(np.int64).max)
    np.minimum.at(fewest, rows.pair_units, there[rows.pair_labels])
    sizes = rows.sizes()
    small = np.zeros(len(candidates)) if sizes is None else sizes[candidates]
    best = candidates[np.lexsort((small, fewest[candidates] <= 1))[0]]
    if fewest[best] > 1 or not to_val:
        in_val[best] = to_val


def stratify_folds(rows: UnitLabels, folds: int, *, seed: int) -> Rows:
    """The fold that holds out each unit, from 0: int64 (units,). Units are dealt to the folds in turn, by stratum."""
    random = np.random.default_rng(seed)
    order = _order_units(rows.strata(), rows.sizes(), random)
    # The largest first, so that the smaller ones even out the sizes of the folds.
    dealt = np.empty(rows.units, np.int64)
    dealt[order[::-1]] = np.arange(rows.units) % folds
    return dealt
