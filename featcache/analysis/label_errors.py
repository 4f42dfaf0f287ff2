"""Labels that are likely wrong, by confident learning (Northcutt, Jiang & Chuang, JAIR 2021).

A linear head judges every image after it was fitted on others. A class is confidently predicted where its probability
reaches the mean that it has among images of that label, or 0.9; an image whose confident class is another one than its
label is a suspect. Linear heads on frozen features are unsure of many images whose labels are right, so a suspect is
named only where its own label has a probability below 0.02 besides.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from featcache.analysis.folds import FOLDS, MOST_FITTED, Probabilities, Progress, out_of_fold
from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.analysis.values import Values

MOST_OWN: Final = 0.02
# Where a head is nearly always sure, its mean is no measure of sureness.
CONFIDENT: Final = 0.9
LEAST_IMAGES: Final = 50


def label_errors(
    table: ImageTable, directions: Values, *, groups: Rows, seed: int = 0, progress: Progress | None = None
) -> Section:
    """The section of labels that are likely wrong, over all splits.

    `groups`: int64 (N,), images of one group are never on both sides of a fold.
    """
    numbers = np.flatnonzero(table.labels >= 0)
    labels = table.labels[numbers]
    if len(numbers) < LEAST_IMAGES or len(np.unique(labels)) < 2:
        note = f"not looked for: {len(numbers)} labelled images of {len(np.unique(labels))} classes are too few"
        return Section(kind="label_error", findings=(), note=note)
    said = out_of_fold(directions, numbers, labels, groups=groups[numbers], seed=seed, progress=progress)
    suspects, suggested = confident_errors(said, labels)
    own = said[suspects, labels[suspects]]
    other = said[suspects, suggested]
    order = np.lexsort((suspects, own - other))
    findings = [
        _finding(table, int(numbers[suspects[n]]), int(suggested[n]), float(own[n]), float(other[n])) for n in order
    ]
    agree = float((said.argmax(axis=1) == labels).mean())
    return Section(kind="label_error", findings=tuple(findings), note=_note(agree, len(numbers)))


def _note(agree: float, images: int) -> str:
    fitted = min(MOST_FITTED, images * (FOLDS - 1) // FOLDS)
    return (
        f"a linear head in {FOLDS} folds, each fitted on {fitted:,} images, agrees with {100 * agree:.1f} % of the "
        "labels; "
        f"named are images of which it is sure of another class and gives their own label less than {MOST_OWN:g}"
    )


def confident_errors(said: Probabilities, labels: Rows) -> tuple[Rows, Rows]:
    """Suspects among (n, C) probabilities and their labels (n,): their positions, and the class of each instead."""
    count, classes = said.shape
    own = said[np.arange(count), labels]
    sums, sizes = np.bincount(labels, own, minlength=classes), np.bincount(labels, minlength=classes)
    threshold = np.minimum(np.divide(sums, sizes, out=np.ones(classes), where=sizes > 0), CONFIDENT)
    # Only where an image's own label is unlikely, so that few of many rows are looked at further.
    unlikely = np.flatnonzero(own < MOST_OWN)
    confident = np.where(said[unlikely] >= threshold, said[unlikely], -1.0)
    best = confident.argmax(axis=1)
    named = (confident.max(axis=1) > 0) & (best != labels[unlikely])
    return unlikely[named], best[named]


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
