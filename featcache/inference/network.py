"""A whole classifier as one torch network, from an image's bytes to probabilities: what is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featcache.heads.neighbours import FixedNeighbours, Neighbours
from featcache.inference.classifier import Classifier
from featcache.inference.resizing import Resizer


class WholeNetwork(nn.Module):
    """(N, H, W, 3) uint8 RGB, of any size -> probabilities float32 (N, C).

    Resize, normalisation, backbones, pooling and head, in fp32 on the CPU. It takes the classifier along: nobody else
    computes with that any more.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.layers = [branch.layers for branch in classifier.branches]
        self.resizers = nn.ModuleList(Resizer(branch.backbone.spec.transform) for branch in classifier.branches)
        self.backbones = nn.ModuleList(branch.backbone.module() for branch in classifier.branches)
        head = classifier.head.cpu()
        self.head = FixedNeighbours(head) if isinstance(head, Neighbours) else head
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """All of it."""
        channels_first = images.permute(0, 3, 1, 2)
        values: list[Tensor] = []
        for resizer, backbone, layers in zip(self.resizers, self.backbones, self.layers, strict=True):
            features = backbone(resizer(channels_first))
            values += [features[layer.name].float() * layer.scale + layer.offset for layer in layers]
        logits: Tensor = self.head(torch.cat(values, dim=1))
        return logits.softmax(dim=1)
