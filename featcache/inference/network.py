"""A whole classifier as one torch module, from the pixels of images to the head's outputs: the module to export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featcache.heads.neighbour_module import FixedNeighbours, Neighbours
from featcache.inference.classifier import Classifier
from featcache.inference.resizing import Resizer


class WholeNetwork(nn.Module):
    """(N, H, W, 3) uint8 RGB, of any size -> float32 (N, C): probabilities, or values where a head predicts numbers.

    Resize, normalisation, backbones, pooling and head, in fp32 on the CPU.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.layers = [branch.layers for branch in classifier.branches]
        self.resizers = nn.ModuleList(Resizer(branch.backbone.spec.transform) for branch in classifier.branches)
        self.backbones = nn.ModuleList(branch.backbone.module() for branch in classifier.branches)
        head = classifier.run.head(classifier.own)
        self.kind = classifier.run.target.kind
        self.head = FixedNeighbours(head) if isinstance(head, Neighbours) else head
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The outputs (N, C) for images (N, H, W, 3) uint8."""
        channels_first = images.permute(0, 3, 1, 2)
        values: list[Tensor] = []
        for resizer, backbone, layers in zip(self.resizers, self.backbones, self.layers, strict=True):
            features = backbone(resizer(channels_first))
            values += [features[layer.name].float() * layer.scale + layer.offset for layer in layers]
        outputs: Tensor = self.head(torch.cat(values, dim=1))
        if self.kind == "classes":
            return outputs.softmax(dim=1)
        return outputs.sigmoid() if self.kind == "lists" else outputs
