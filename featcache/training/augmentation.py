"""Making more of the train features: mixtures of two rows, and noise. Nothing of it is left in the trained head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A batch of mixtures: `share` of each row itself, the rest of a partner's.

    `features`: float32 (B, D); `labels`, `partners`: int64 (B,), the labels of both.
    """

    features: Tensor
    labels: Tensor
    partners: Tensor
    share: float

    def loss(self, logits: Tensor, *, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Cross-entropy against both labels, each by its share."""
        own, other = (
            F.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)
            for labels in (self.labels, self.partners)
        )
        return self.share * own + (1 - self.share) * other


def mixed(features: Tensor, labels: Tensor, alpha: float) -> Mixture:
    """Mixup (Zhang, Cisse, Dauphin, Lopez-Paz: mixup, ICLR 2018): one share from Beta(alpha, alpha) for the batch,
    and every row with another row of it. Drawn from torch's global generator.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(len(labels)).to(labels.device)
    mixture = torch.lerp(features.index_select(0, partner), features, share)
    return Mixture(features=mixture, labels=labels, partners=labels.index_select(0, partner), share=share)


class NoisyHead(nn.Module):
    """A head that is trained on features with Gaussian noise of deviation `sigma`; in eval mode there is none.

    The noise is added where the features lie: memory for another copy costs more than that.
    """

    def __init__(self, head: nn.Module, sigma: float) -> None:
        super().__init__()
        self.head = head
        self.sigma = sigma

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> logits (B, C)."""
        if self.training:
            features.add_(torch.randn_like(features), alpha=self.sigma)
        logits: Tensor = self.head(features)
        return logits
