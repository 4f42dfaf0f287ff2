"""Finds labels that are likely wrong, by confident learning (Northcutt, Jiang & Chuang, JAIR 2021).

A linear head predicts every image after it was fitted on others. A class is predicted with confidence if its
probability reaches its mean among images with that label, or 0.9. An image is a suspect if such a class differs from
its label. Linear heads on frozen features are unsure of many images with correct labels, so a suspect becomes a finding
only if its own label also has a probability below 0.02. If the head knows little more than the shares of the classes,
nothing is listed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from featcache.analysis.folds import FOLDS, MOST_FITTED, Probabilities, out_of_fold
from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.values import Rows, Values
from featcache.progress import StageProgress
from featcache.text import human_count

MOST_OWN: Final = 0.02
# An upper bound of the threshold: if a head is nearly always certain, the mean probability is too strict.
CONFIDENT: Final = 0.9
LEAST_IMAGES: Final = 50
# The least share of what always predicting the most frequent class gets wrong that the head must get right.
LEAST_SKILL: Final = 0.4

_METHOD: Final = "labels that a linear head on the other images contradicts"


def label_errors(
    table: ImageTable, directions: Values, *, groups: Rows, seed: int = 0, progress: StageProgress | None = None
) -> Section:
    """The section of labels that are likely wrong, over all splits.

    `directions`: float32 (N, d), of all images. `groups`: int64 (N,); images of one group stay in the same fold.
    """
    numbers = np.flatnonzero(table.labels >= 0)
    labels = table.labels[numbers]
    if len(numbers) < LEAST_IMAGES or len(np.unique(labels)) < 2:
        classes = human_count(len(np.unique(labels)), "class", "classes")
        reason = (
            f"too few: {human_count(len(numbers), 'labelled image')} of {classes}; it takes {LEAST_IMAGES} images, and "
            "two classes"
        )
        return Section(kind="label_error", note=_METHOD, withheld=reason)
    probabilities = out_of_fold(directions, numbers, labels, groups=groups[numbers], seed=seed, progress=progress)
    agree = float((probabilities.argmax(axis=1) == labels).mean())
    frequent = float(np.bincount(labels).max() / len(labels))
    if agree - frequent < LEAST_SKILL * (1 - frequent):
        reason = (
            f"a linear head agrees with {100 * agree:.1f} % of the labels, always predicting the most frequent class "
            f"with {100 * frequent:.1f} %: features that know so little of the labels cannot tell which are wrong"
        )
        return Section(kind="label_error", note=_METHOD, withheld=reason)
    suspects, suggested = confident_errors(probabilities, labels)
    own = probabilities[suspects, labels[suspects]]
    other = probabilities[suspects, suggested]
    order = np.lexsort((suspects, own - other))
    findings = [
        _finding(table, int(numbers[suspects[n]]), int(suggested[n]), float(own[n]), float(other[n])) for n in order
    ]
    return Section(kind="label_error", findings=tuple(findings), note=_note(agree, len(numbers)))


def _note(agree: float, images: int) -> str:
    fitted = min(MOST_FITTED, images * (FOLDS - 1) // FOLDS)
    return (
        f"a linear head in {FOLDS} folds, each fitted on {fitted:,} images, agrees with {100 * agree:.1f} % of the "
        "labels; "
        f"listed are images for which it is confident of another class and gives their own label less than {MOST_OWN:g}"
    )


def confident_errors(probabilities: Probabilities, labels: Rows) -> tuple[Rows, Rows]:
    """Likely label errors, from probabilities float32 (n, C) and labels int64 (n,).

    Returns the positions of the suspects and the class that is predicted for each: int64 (k,), int64 (k,).
    """
    count, classes = probabilities.shape
    own = probabilities[np.arange(count), labels]
    sums, sizes = np.bincount(labels, own, minlength=classes), np.bincount(labels, minlength=classes)
    threshold = np.minimum(np.divide(sums, sizes, out=np.ones(classes), where=sizes > 0), CONFIDENT)
    # Only rows whose own label is unlikely, so that the next steps handle few rows.
    unlikely = np.flatnonzero(own < MOST_OWN)
    confident = np.where(probabilities[unlikely] >= threshold, probabilities[unlikely], -1.0)
    best = confident.argmax(axis=1)
    suspect = (confident.max(axis=1) > 0) & (best != labels[unlikely])
    return unlikely[suspect], best[suspect]


def _finding(table: ImageTable, number: int, suggested: int, own: float, other: float) -> Finding:
    sample = table.sample(number)
    given, instead = table.classes[sample.label], table.classes[suggested]
    return Finding(
        kind="label_error",
        samples=(sample,),
        score=max(0.0, other - own),
        reason=f"labelled {given}, looks like {instead}: {other:.2f} against {own:.3f}",
        suggested=suggested,
    )
