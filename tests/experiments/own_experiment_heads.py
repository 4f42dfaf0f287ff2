"""A head and a loss of one's own, in a module that can be imported."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Wide(nn.Module):
    """One hidden layer."""

    def __init__(self, in_features: int, outputs: int, width: int = 4, name: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.hidden, self.output = nn.Linear(in_features, width), nn.Linear(width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.hidden(features).tanh())
        return outputs


def narrow(in_features: int, outputs: int) -> nn.Module:
    return Wide(in_features, outputs, 2)


def smooth_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.2)
