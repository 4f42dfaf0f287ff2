"""Rows scaled to length 1, as a torch module: the first layer of the head `text`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class UnitLength(nn.Module):
    """float32 (B, D) -> (B, D), each row divided by its length; a row of zeros stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """Scale every row."""
        return F.normalize(features, dim=1)
