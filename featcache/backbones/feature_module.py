"""The module that programs compute: normalisation, network and pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from featcache.backbones.spec import Layer
from featcache.backbones.transforms import Transform


class FeatureModule(nn.Module):
    """uint8 (N, 3, S, S) -> {layer: float32 (N, D)}: normalisation, network and pooling.

    Args:
        part: The network: float32 (N, 3, S, S) -> {layer: (N, ...)}.
        transform: Gives the normalisation.
        layers: The layers with their pooling.
    """

    def __init__(self, part: nn.Module, transform: Transform, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.part = part
        self.transform = transform
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        outputs = self.part(self.transform.normalize(images))
        return {layer.name: layer.pooling.rows(outputs[layer.name]).float() for layer in self.layers}
