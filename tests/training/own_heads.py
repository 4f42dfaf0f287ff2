"""Custom heads and losses, as in a user's package."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gated(nn.Module):
    """A head with a batch norm, dropout, and a buffer that is replaced by a new tensor in every step."""

    seen: Tensor

    def __init__(self, in_features: int, outputs: int, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        # Without a bias, which the batch norm would subtract again.
        self.hidden = nn.Linear(in_features, width, bias=False)
        self.weighting = nn.Linear(in_features, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, outputs)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + len(features)
        values = self.norm(self.hidden(features)) * torch.sigmoid(self.weighting(features))
        outputs: Tensor = self.output(self.dropout(values))
        return outputs


class Tied(nn.Module):
    """A head that uses the same weights twice, and has a frozen layer."""

    def __init__(self, in_features: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, in_features)
        self.second = self.first
        self.frozen = nn.Linear(in_features, outputs).requires_grad_(False)
        self.output = nn.Linear(in_features, outputs)

    def forward(self, features: Tensor) -> Tensor:
        values = torch.relu(self.second(torch.relu(self.first(features))))
        outputs: Tensor = self.output(values) + self.frozen(values)
        return outputs


def two_layers(in_features: int, outputs: int, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, width), nn.Tanh(), nn.Linear(width, outputs))


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def high_quantile(outputs: Tensor, targets: Tensor) -> Tensor:
    over = targets - outputs
    return torch.maximum(0.9 * over, -0.1 * over).mean()


def not_a_module(in_features: int, outputs: int) -> object:
    return [in_features, outputs]


def too_wide(in_features: int, outputs: int) -> nn.Module:
    return nn.Linear(in_features, outputs + 1)


def raising(in_features: int, outputs: int) -> nn.Module:
    raise ValueError("no such width")


def in_double(in_features: int, outputs: int) -> nn.Module:
    return nn.Linear(in_features, outputs).double()


def frozen(in_features: int, outputs: int) -> nn.Module:
    return nn.Linear(in_features, outputs).requires_grad_(False)


class Failing(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        raise RuntimeError("not today")
