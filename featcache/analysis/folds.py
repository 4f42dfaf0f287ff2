"""Out-of-fold probabilities: what a linear head says of each image after it was fitted on others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.thinning import Rows, thin
from featcache.analysis.values import Values

Probabilities = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]

FOLDS: Final = 5
# Rows a fold is fitted on: more make little difference to a linear head, and cost memory and time.
MOST_FITTED: Final = 20_000
# scikit-learn's C, on values of variance 1: what was best calibrated on CIFAR-10 of 0.0001 to 0.1 (docs/audit.md).
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
    progress: Progress | None = None,
) -> Probabilities:
    """Float32 (n, C): the probability of each class for `numbers` of `directions` (N, d), whose labels are `labels`.

    Multinomial logistic regression in five folds: an image is judged by the one that has not seen it, nor any image of
    its group, int64 (n,), where groups are given. C is the greatest label + 1; a class that a fold has not seen has
    the probability 0 there. The probabilities are made to fit the labels by one factor on the logits (Guo et al.,
    2017). `progress` is called with ("judging", folds done, 5).
    """
    present, codes = np.unique(labels, return_inverse=True)
    logits = np.full((len(numbers), len(present)), -np.inf, np.float32)
    fold = _fold_of(len(numbers) if groups is None else groups, seed)
    for number in range(FOLDS):
        seen, unseen = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(np.unique(codes[seen])) > 1 and len(unseen):
            _judge(directions, numbers, codes, seen, unseen, logits, seed)
        if progress is not None:
            progress("judging", number + 1, FOLDS)
    logits *= np.float32(_factor(logits, codes))
    _softmax_(logits)
    if len(present) == int(labels.max()) + 1:
        return logits
    said = np.zeros((len(numbers), int(labels.max()) + 1), np.float32)
    said[:, present] = logits
    return said


def _fold_of(groups: Rows | int, seed: int) -> Rows:
    ids = np.arange(groups) if isinstance(groups, int) else np.unique(groups, return_inverse=True)[1].reshape(-1)
    order = np.random.default_rng(seed).permutation(int(ids.max()) + 1)
    return (order % FOLDS)[ids]


def _judge(
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
        # It is asked for an opinion, not for the last digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        head.fit(directions[numbers[fitted]] * scale, labels[fitted])
    for start in range(0, len(unseen), _BLOCK):
        some = unseen[start : start + _BLOCK]
        said = head.decision_function(directions[numbers[some]] * scale)
        # Of two classes scikit-learn gives one column.
        logits[some[:, None], head.classes_] = said if said.ndim == 2 else np.stack([-said / 2, said / 2], axis=1)


def _factor(logits: Probabilities, labels: Rows) -> float:
    from featcache.heads.calibration import sharpness

    # A class that a fold never saw must not decide how sure the others are.
    known = np.isfinite(logits).all(axis=1)
    return sharpness(logits[known], labels[known]) if known.any() else 1.0


def _softmax_(logits: Probabilities) -> None:
    """Where they lie: many images of many classes are held once."""
    highest = logits.max(axis=1, keepdims=True)
    # A fold that could not be fitted says nothing.
    logits[~np.isfinite(highest[:, 0])] = 0.0
    logits -= np.where(np.isfinite(highest), highest, 0.0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
