"""`pixels`: the backbone that computes nothing. It resizes images and stores their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.backbone import Backbone
from featcache.backbones.layers import Layer
from featcache.backbones.transforms import Transform

if TYPE_CHECKING:
    from torch import Tensor, nn


class Pixels(Backbone):
    """Resized images as uint8, flattened channels first: D = 3 * S * S, value = byte * scale + offset."""

    name = "pixels"
    pool = "none"
    weights = None
    parameters = 0
    flops_per_image = 0
    stores_bytes = True

    def __init__(self, transform: Transform) -> None:
        side = transform.image_size
        self.transform = transform
        self.layers = (Layer(name="pixels", shape=(3, side, side)),)

    @property
    def scale(self) -> float:
        """What a stored byte is multiplied with."""
        return 1.0 / (255.0 * self.transform.std[0])

    @property
    def offset(self) -> float:
        """What is added then."""
        return -self.transform.mean[0] / self.transform.std[0]

    def place(self, device: str, precision: str) -> None:
        """Nothing to place: bytes are copied on the CPU."""

    def features(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        import torch

        return {"pixels": torch.as_tensor(images).permute(0, 3, 1, 2).flatten(1)}

    def module(self) -> nn.Module:
        from torch import nn

        class Bytes(nn.Module):
            def forward(self, images: Tensor) -> dict[str, Tensor]:
                return {"pixels": images.flatten(start_dim=1)}

        return Bytes()
