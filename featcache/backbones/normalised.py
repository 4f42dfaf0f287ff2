"""What a network's programs compute: bytes in, rows of features out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from featcache.backbones.spec import Layer
from featcache.backbones.transforms import Transform


class Rows(nn.Module):
    """uint8 (N, 3, S, S) -> {layer: (N, D)} float32: normalisation, network and pooling.

    Args:
        part: float32 (N, 3, S, S) -> {layer: (N, ...)}.
    """

    def __init__(self, part: nn.Module, transform: Transform, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.part = part
        self.transform = transform
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.part(self.transform.normalize(images))
        return {layer.name: layer.pooling.rows(outputs[layer.name]).float() for layer in self.layers}
