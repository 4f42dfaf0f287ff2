"""Checks of the splits: names, sizes, class shares, images without labels, class balance and unlike images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from featcache.analysis.folds import out_of_fold
from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.values import Rows, Values, thin
from featcache.columns import TARGET_KINDS
from featcache.images.splits import SPLIT_WORDS
from featcache.text import human_count

Counts = Mapping[str, Mapping[str, int]]

# With fewer images an accuracy of 90 % is uncertain by 6 points or more.
SMALL_SPLIT: Final = 100
# The largest total variation distance between the class shares of two splits, if chance does not explain more.
MOST_APART: Final = 0.1
CHANCE: Final = 1e-3
# The largest area under the ROC curve of a linear head that separates two splits, if chance does not explain more.
MOST_SEPARABLE: Final = 0.6
COMPARED: Final = 2_000
LEAST_COMPARED: Final = 50
# A class is out of balance below a third, or above three times, of the median class.
IMBALANCE: Final = 3


def counts(table: ImageTable) -> Counts:
    """The number of images by split and class, in the order of the classes; unlabelled images, if any, under ""."""
    images: dict[str, dict[str, int]] = {}
    for split in table.splits:
        labels = table.labels[table.of_split(split)]
        sizes = np.bincount(labels + 1, minlength=len(table.classes) + 1).tolist()
        images[split] = dict(zip(table.classes, sizes[1:], strict=True)) | ({"": sizes[0]} if sizes[0] else {})
    return images


def split_section(table: ImageTable, directions: Values, *, seed: int = 0) -> Section:
    """The section of splits that do not match their names, are small, or differ from train."""
    findings = [*_ids_of_other_splits(table), *_small(table), *_classes_missing(table)]
    for split in table.splits:
        if "train" in table.splits and split != "train":
            findings += [*_other_classes(table, split), *_other_images(table, directions, split, seed)]
    findings.sort(key=lambda finding: -finding.score)
    note = "split names inside ids, sizes, class shares, and whether a linear head can separate a split from train"
    return Section(kind="split", findings=tuple(findings), note=note)


def _ids_of_other_splits(table: ImageTable) -> Iterator[Finding]:
    # A class may have the name train, which then says nothing about the split.
    class_words = {word for name in table.classes for word in _words(name)}
    for split in table.splits:
        numbers = table.of_split(split)
        by_name: dict[str, list[int]] = {}
        for number in numbers.tolist():
            names = {SPLIT_WORDS[word] for word in _words(table.sample(number).id) - class_words if word in SPLIT_WORDS}
            if names and split not in names:
                by_name.setdefault(" and ".join(sorted(names)), []).append(number)
        for name, some in by_name.items():
            yield Finding(
                kind="split",
                samples=table.samples(np.array(some)),
                score=len(some) / len(numbers),
                reason=f"{len(some):,} of {len(numbers):,} images of {split} have ids that name {name}",
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
                reason=f"{split} has {human_count(size, 'image')}: an accuracy of 90 % on them is uncertain by "
                f"{points:.0f} points",
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
                reason=f"{split} has no image of {_first_names(missing)}, which other splits have",
            )


def _first_names(names: list[str]) -> str:
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
            reason=f"the class shares of {split} differ from those of train: {100 * apart:.0f} % of its images would "
            "need another class to match",
        )


def _sizes(table: ImageTable, split: str) -> Rows:
    labels = table.labels[table.of_split(split)]
    return np.bincount(labels[labels >= 0], minlength=len(table.classes))


def _other_images(table: ImageTable, directions: Values, split: str, seed: int) -> Iterator[Finding]:
    """A classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017) on equally many images of each class."""
    from sklearn.metrics import roc_auc_score

    ours, others = _same_classes(table, "train", split, seed)
    if len(ours) < LEAST_COMPARED:
        return
    numbers, sides = np.concatenate([ours, others]), np.repeat([0, 1], [len(ours), len(others)])
    auc = float(roc_auc_score(sides, out_of_fold(directions, numbers, sides, seed=seed)[:, 1]))
    chance = math.sqrt((2 * len(ours) + 1) / (12 * len(ours) ** 2))
    if auc > max(MOST_SEPARABLE, 0.5 + 4 * chance):
        yield Finding(
            kind="split",
            score=2 * auc - 1,
            reason=f"images of {split} look different from those of train: a linear head separates "
            f"{100 * auc:.0f} % of pairs of both, chance is 50 %",
        )


def _same_classes(table: ImageTable, one: str, other: str, seed: int) -> tuple[Rows, Rows]:
    """Image numbers from both splits, equally many of each class."""
    chosen: tuple[list[Rows], list[Rows]] = ([], [])
    for label in np.unique(table.labels):
        both = [split[table.labels[split] == label] for split in (table.of_split(one), table.of_split(other))]
        size = min(map(len, both))
        for side, numbers in zip(chosen, both, strict=True):
            side.append(numbers[thin(len(numbers), size, seed=seed)])
    pair = [np.concatenate(side) for side in chosen]
    first, second = (numbers[thin(len(numbers), COMPARED, labels=table.labels[numbers], seed=seed)] for numbers in pair)
    return first, second


def missing_labels_section(table: ImageTable) -> Section:
    """The section of images without a label, one finding per split; images of a split without any are not listed.

    If no image of the cache has a label, heads learn its other targets: then those without a value of any of them.
    """
    findings = []
    learnable = {name: one.has_value for name, one in table.targets.items() if one.kind in TARGET_KINDS}
    known, what = learnable.pop(table.label_name, np.zeros(len(table), np.bool_)), "label"
    if not known.any() and learnable:
        known, what = np.any(list(learnable.values()), axis=0), f"value of {' or '.join(learnable)}"
    for split in table.splits:
        numbers = table.of_split(split)
        without = numbers[~known[numbers]]
        if len(without):
            partly = len(without) < len(numbers)
            findings.append(
                Finding(
                    kind="unlabelled",
                    samples=table.samples(without) if partly else (),
                    score=len(without) / len(numbers),
                    reason=f"{len(without):,} of {len(numbers):,} images of {split} have no {what}",
                )
            )
    return Section(kind="unlabelled", findings=tuple(findings), note="heads are trained without these images")


def balance_section(images: Counts) -> Section:
    """The section of classes that are rare or frequent in a split, relative to its median class."""
    findings = [finding for split, sizes in images.items() for finding in _out_of_balance(split, sizes)]
    findings.sort(key=lambda finding: -finding.score)
    note = "; ".join(f"{split}: {_range(sizes)}" for split, sizes in images.items())
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
    return f"{human_count(len(labelled), 'class', 'classes')} of {each} {'image' if high == 1 else 'images'}"
