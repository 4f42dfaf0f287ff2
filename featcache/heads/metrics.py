"""How good a head is: computed once over all logits of a part, never per batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_stat_scores,
)

from featcache.heads.records import Metrics, Score
from featcache.rows.batches import Epochs

CALIBRATION_BINS = 15
BOOTSTRAP_DRAWS = 10_000
LARGEST_CONFUSION = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a head says of some rows, in the order of the cache: logits float32 (N, C), labels int64 (N,)."""

    logits: Tensor
    labels: Tensor

    def score(self) -> Score:
        """Accuracy (a fraction) and mean cross-entropy (natural logarithm)."""
        counts = multiclass_stat_scores(
            self.logits, self.labels, num_classes=self.logits.shape[1], average="micro", validate_args=False
        )
        # From the counts (right, ..., all), because torchmetrics' accuracy is a float32.
        right, everything = int(counts[0]), int(counts[-1])
        return Score(value=right / everything, loss=float(F.cross_entropy(self.logits, self.labels)))


def evaluate(head: nn.Module, batches: Epochs) -> Outcome:
    """The head's logits for all rows, in eval mode; the mode it was in is restored."""
    training = head.training
    head.eval()
    try:
        with torch.inference_mode():
            pairs = [(head(features), labels) for features, labels in batches.in_order(reuse=True)]
    finally:
        head.train(training)
    return Outcome(logits=torch.cat([logits for logits, _ in pairs]), labels=torch.cat([labels for _, labels in pairs]))


def measure(outcome: Outcome, *, temperature: float, seed: int) -> Metrics:
    """All that is said of one part.

    `temperature`: what val asks the logits to be divided by; `seed`: the bootstrap's.
    """
    logits, labels = outcome.logits.float().cpu(), outcome.labels.cpu()
    classes = logits.shape[1]
    confusion = multiclass_confusion_matrix(logits.argmax(dim=1), labels, num_classes=classes, validate_args=False)
    right, there, said = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    recall = _shares(right, there)
    present = [value for value in recall if value is not None]
    return Metrics(
        accuracy=sum(right) / len(labels),
        accuracy_interval=accuracy_interval(sum(right), len(labels), seed=seed),
        top5=_top5(logits, labels) if classes > 5 else None,
        balanced_accuracy=sum(present) / len(present),
        macro_f1=float(multiclass_f1_score(logits.argmax(dim=1), labels, num_classes=classes, validate_args=False)),
        calibration_error=_calibration_error(logits, labels),
        temperature=temperature,
        scaled_calibration_error=_calibration_error(logits / temperature, labels),
        recall=recall,
        precision=_shares(right, said),
        images=tuple(there),
        confusion=tuple(map(tuple, confusion.tolist())) if classes <= LARGEST_CONFUSION else None,
    )


def accuracy_interval(right: int, images: int, *, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of accuracy when the images are drawn again, with replacement.

    How many of such a draw are right is binomial: so it is drawn, which is the same and costs nothing.
    """
    drawn = np.random.default_rng(seed).binomial(images, right / images, size=BOOTSTRAP_DRAWS) / images
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _shares(parts: list[int], wholes: list[int]) -> tuple[float | None, ...]:
    return tuple(part / whole if whole else None for part, whole in zip(parts, wholes, strict=True))


def _top5(logits: Tensor, labels: Tensor) -> float:
    classes = logits.shape[1]
    share = multiclass_accuracy(logits, labels, num_classes=classes, average="micro", top_k=5, validate_args=False)
    return float(share)


def _calibration_error(logits: Tensor, labels: Tensor) -> float:
    # As probabilities: torchmetrics takes logits that happen to lie in 0..1 for some.
    shares = logits.softmax(dim=1)
    error = multiclass_calibration_error(
        shares, labels, num_classes=shares.shape[1], n_bins=CALIBRATION_BINS, validate_args=False
    )
    return float(error)
