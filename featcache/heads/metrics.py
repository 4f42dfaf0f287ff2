"""How good a head is: computed once over all logits of a part, never per batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_stat_scores

from featcache.heads.batches import Batches
from featcache.heads.records import Score


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
        return Score(accuracy=right / everything, loss=float(F.cross_entropy(self.logits, self.labels)))


def evaluate(head: nn.Module, batches: Batches) -> Outcome:
    """The head's logits for all rows, in eval mode; the mode it was in is restored."""
    training = head.training
    head.eval()
    try:
        with torch.inference_mode():
            pairs = [(head(features), labels) for features, labels in batches.in_order()]
    finally:
        head.train(training)
    return Outcome(logits=torch.cat([logits for logits, _ in pairs]), labels=torch.cat([labels for _, labels in pairs]))
