"""What the splits are made of: whether they fit each other and their names, and how their classes are balanced."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from featcache.analysis.folds import out_of_fold
from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows, thin
from featcache.analysis.values import Values
from featcache.images.splits import SPLIT_WORDS

Counts = Mapping[str, Mapping[str, int]]

# A split smaller than this measures nothing to within 6 points.
SMALL_SPLIT: Final = 100
# How far the classes' shares of two splits may lie apart (total variation), beyond what chance explains.
MOST_APART: Final = 0.1
CHANCE: Final = 1e-3
# How well a linear head may tell images of two splits apart (area under the ROC curve), beyond what chance explains.
MOST_TOLD_APART: Final = 0.6
COMPARED: Final = 2_000
LEAST_COMPARED: Final = 50
# A class is out of balance at a third, or three times, of the median class.
IMBALANCE: Final = 3


def counts(table: ImageTable) -> Counts:
    """Images by split and class, in the classes' order; unlabelled ones under "", where there are some."""
    found: dict[str, dict[str, int]] = {}
    for split in table.splits:
        labels = table.labels[table.of_split(split)]
        sizes = np.bincount(labels + 1, minlength=len(table.classes) + 1).tolist()
        found[split] = dict(zip(table.classes, sizes[1:], strict=True)) | ({"": sizes[0]} if sizes[0] else {})
    return found


def split_section(table: ImageTable, directions: Values, *, seed: int = 0) -> Section:
    """Splits that do not match their names, are small, or are made of other images than train."""
    findings = [*_misnamed(table), *_small(table), *_classes_missing(table)]
    for split in table.splits:
        if "train" in table.splits and split != "train":
            findings += [*_other_classes(table, split), *_other_images(table, directions, split, seed)]
    findings.sort(key=lambda finding: -finding.score)
    note = "names inside ids, sizes, the classes' shares, and whether a linear head tells a split's images from train's"
    return Section(kind="split", findings=tuple(findings), note=note)


def _misnamed(table: ImageTable) -> Iterator[Finding]:
    # A class may be called train.
    class_words = {word for name in table.classes for word in _words(name)}
    for split in table.splits:
        numbers = table.of_split(split)
        strange: dict[str, list[int]] = {}
        for number in numbers.tolist():
            named = {SPLIT_WORDS[word] for word in _words(table.sample(number).id) - class_words if word in SPLIT_WORDS}
            if named and split not in named:
                strange.setdefault(" and ".join(sorted(named)), []).append(number)
        for name, some in strange.items():
            yield Finding(
                kind="split",
                samples=table.samples(np.array(some)),
                score=len(some) / len(numbers),
                reason=f"{len(some):,} of {len(numbers):,} images of {split} are called {name}",
            )


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z]+", text.lower()))


def _small(table: ImageTable) -> Iterator[Finding]:
    for split in table.splits:
        size = len(table.of_split(split))
        if split != "train" and 0 < size < SMALL_SPLIT:
            points = 100 * 1.96 * math.sqrt(0.9 * 0.1 / size)
            yield Finding(
                kind="split",
                score=1 - size / SMALL_SPLIT,
                reason=f"{split} has {size} images: an accuracy of 90 % on them is uncertain by {points:.0f} points",
            )


def _classes_missing(table: ImageTable) -> Iterator[Finding]:
    present = {split: set(table.labels[table.of_split(split)].tolist()) - {-1} for split in table.splits}
    there = set().union(*present.values())
    for split, labels in present.items():
        missing = [table.classes[label] for label in sorted(there - labels)]
        if labels and missing:
            yield Finding(
                kind="split",
                score=len(missing) / len(there),
                reason=f"{split} has no image of {_listed(missing)}, which other splits have",
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")


def _other_classes(table: ImageTable, split: str) -> Iterator[Finding]:
    from scipy.stats import chi2_contingency

    sizes = np.stack([_sizes(table, "train"), _sizes(table, split)])
    sizes = sizes[:, sizes.sum(axis=0) > 0]
    if sizes.shape[1] < 2 or not sizes.any(axis=1).all():
        return
    shares = sizes / sizes.sum(axis=1, keepdims=True)
    apart = float(np.abs(shares[0] - shares[1]).sum() / 2)
    if apart > MOST_APART and chi2_contingency(sizes).pvalue < CHANCE:
        yield Finding(
            kind="split",
            score=apart,
            reason=f"the classes of {split} have other shares than in train: {100 * apart:.0f} % of its images would "
            "have to be of another class",
        )


def _sizes(table: ImageTable, split: str) -> Rows:
    labels = table.labels[table.of_split(split)]
    return np.bincount(labels[labels >= 0], minlength=len(table.classes))


def _other_images(table: ImageTable, directions: Values, split: str, seed: int) -> Iterator[Finding]:
    """A classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017) on images of the same classes."""
    from sklearn.metrics import roc_auc_score

    ours, others = _matched(table, "train", split, seed)
    if len(ours) < LEAST_COMPARED:
        return
    numbers, sides = np.concatenate([ours, others]), np.repeat([0, 1], [len(ours), len(others)])
    told = float(roc_auc_score(sides, out_of_fold(directions, numbers, sides, seed=seed)[:, 1]))
    chance = math.sqrt((2 * len(ours) + 1) / (12 * len(ours) ** 2))
    if told > max(MOST_TOLD_APART, 0.5 + 4 * chance):
        yield Finding(
            kind="split",
            score=2 * told - 1,
            reason=f"images of {split} look other than those of train: a linear head puts {100 * told:.0f} % of pairs "
            "of both in order, 50 % would be chance",
        )


def _matched(table: ImageTable, one: str, other: str, seed: int) -> tuple[Rows, Rows]:
    """As many images of each class from both splits."""
    chosen: tuple[list[Rows], list[Rows]] = ([], [])
    for label in np.unique(table.labels):
        both = [split[table.labels[split] == label] for split in (table.of_split(one), table.of_split(other))]
        size = min(map(len, both))
        for side, numbers in zip(chosen, both, strict=True):
            side.append(numbers[thin(len(numbers), size, seed=seed)])
    pair = [np.concatenate(side) for side in chosen]
    first, second = (numbers[thin(len(numbers), COMPARED, labels=table.labels[numbers], seed=seed)] for numbers in pair)
    return first, second


def unlabelled_section(table: ImageTable) -> Section:
    """Images without a label, a finding a split; where a whole split has none, its images are not listed."""
    findings = []
    for split in table.splits:
        numbers = table.of_split(split)
        without = numbers[table.labels[numbers] < 0]
        if len(without):
            partly = len(without) < len(numbers)
            findings.append(
                Finding(
                    kind="unlabelled",
                    samples=table.samples(without) if partly else (),
                    score=len(without) / len(numbers),
                    reason=f"{len(without):,} of {len(numbers):,} images of {split} have no label",
                )
            )
    return Section(kind="unlabelled", findings=tuple(findings), note="heads are trained without them")


def balance_section(found: Counts) -> Section:
    """Classes that are rare or frequent in a split, against its median class."""
    findings = [finding for split, sizes in found.items() for finding in _out_of_balance(split, sizes)]
    findings.sort(key=lambda finding: -finding.score)
    note = "; ".join(f"{split}: {_range(sizes)}" for split, sizes in found.items())
    return Section(kind="balance", findings=tuple(findings), note=note)


def _out_of_balance(split: str, sizes: Mapping[str, int]) -> Iterator[Finding]:
    labelled = {name: size for name, size in sizes.items() if name and size}
    median = float(np.median(list(labelled.values()))) if labelled else 0.0
    for name, size in labelled.items():
        if size * IMBALANCE < median or size > IMBALANCE * median:
            yield Finding(
                kind="balance",
                score=1 - min(size, median) / max(size, median),
                reason=f"{name} has {size:,} images in {split}, the median class {median:,.0f}",
            )


def _range(sizes: Mapping[str, int]) -> str:
    labelled = [size for name, size in sizes.items() if name and size]
    if not labelled:
        return "no labels"
    low, high = min(labelled), max(labelled)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{len(labelled)} classes of {each} images"
