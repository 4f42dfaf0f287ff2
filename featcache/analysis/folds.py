"""Out-of-fold probabilities: a linear head's prediction for each image, fitted without that image."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.values import Rows, Values, thin
from featcache.progress import StageProgress

Probabilities = npt.NDArray[np.float32]

FOLDS: Final = 5
# Rows on which a fold is fitted: more change a linear head little, and cost memory and time.
MOST_FITTED: Final = 20_000
# scikit-learn's C, for values of variance 1: the best calibrated on CIFAR-10, of 0.0001 to 0.1 (docs/audit.md).
PENALTY: Final = 0.01
_STEPS: Final = 200
_BLOCK: Final = 8192


def out_of_fold(
    directions: Values,
    numbers: Rows,
    labels: Rows,
    *,
    groups: Rows | None = None,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> Probabilities:
    """Out-of-fold class probabilities: float32 (n, C), where C is the greatest label + 1.

    Multinomial logistic regression in five folds. An image's probabilities come from the fold that was fitted without
    it, and without all other images of its group. They are calibrated by one factor on the logits (Guo et al., 2017).
    A class that is missing from a fold's training rows has the probability 0 there.

    Args:
        directions: Features of all images, float32 (N, d), of length 1.
        numbers: Indices into `directions` of the images to predict, int64 (n,).
        labels: Labels of these images, int64 (n,).
        groups: Group of each of these images, int64 (n,); None: every image is its own group.
        seed: Seed of the folds and of the choice of rows.
        progress: Called with ("judging", folds done, 5).
    """
    present, codes = np.unique(labels, return_inverse=True)
    logits = np.full((len(numbers), len(present)), -np.inf, np.float32)
    fold = _fold_of(len(numbers) if groups is None else groups, seed)
    for number in range(FOLDS):
        seen, unseen = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(np.unique(codes[seen])) > 1 and len(unseen):
            _predict_fold(directions, numbers, codes, seen, unseen, logits, seed)
        if progress is not None:
            progress("judging", number + 1, FOLDS)
    logits *= np.float32(_factor(logits, codes))
    _softmax_(logits)
    if len(present) == int(labels.max()) + 1:
        return logits
    probabilities = np.zeros((len(numbers), int(labels.max()) + 1), np.float32)
    probabilities[:, present] = logits
    return probabilities


def _fold_of(groups: Rows | int, seed: int) -> Rows:
    ids = np.arange(groups) if isinstance(groups, int) else np.unique(groups, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(seed).permutation(int(ids.max()) + 1)
    return (order % FOLDS)[ids]


def _predict_fold(
    directions: Values,
    numbers: Rows,
    labels: Rows,
    seen: Rows,
    unseen: Rows,
    logits: Probabilities,
    seed: int,
) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Rows of length 1 have values of variance 1 / d.
    scale = np.float32(np.sqrt(directions.shape[1]))
    fitted = seen[thin(len(seen), MOST_FITTED, labels=labels[seen], seed=seed)]
    head = LogisticRegression(C=PENALTY, max_iter=_STEPS, tol=1e-3)
    with warnings.catch_warnings():
        # Approximate probabilities are sufficient here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Labels are classes, also if there are nearly as many as images.
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        head.fit(directions[numbers[fitted]] * scale, labels[fitted])
    for start in range(0, len(unseen), _BLOCK):
        some = unseen[start : start + _BLOCK]
        scores = head.decision_function(directions[numbers[some]] * scale)
        # For two classes scikit-learn returns one column.
        columns = scores if scores.ndim == 2 else np.stack([-scores / 2, scores / 2], axis=1)
        logits[some[:, None], head.classes_] = columns


def _factor(logits: Probabilities, labels: Rows) -> float:
    from featcache.heads.calibration import best_factor

    # Rows of a fold that lacks a class are left out: their -inf would distort the factor.
    known = np.isfinite(logits).all(axis=1)
    return best_factor(logits[known], labels[known]) if known.any() else 1.0


def _softmax_(logits: Probabilities) -> None:
    """Softmax in place, because a copy of many images times many classes is large."""
    highest = logits.max(axis=1, keepdims=True)
    # A fold that could not be fitted gives all classes the same probability.
    logits[~np.isfinite(highest[:, 0])] = 0.0
    logits -= np.where(np.isfinite(highest), highest, 0.0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
