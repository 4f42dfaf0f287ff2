"""A whole classifier as one torch module, from the pixels of images to outputs, that can be exported.

The resize inside it gives Pillow's own bytes, for images of any size. A resize multiplies the image by two matrices,
one for each side, and Pillow rounds to whole bytes after each product. Its weights are whole multiples of 2^-22, so in
float64 every sum here is exact, and rounding gives Pillow's own byte. Because of the rounding, the order of the sides
matters: the width comes first, unless (since Pillow 13) the height shrinks by more than twice as many pixels as the
width. The matrices are computed from the image's size, which is only known when the exported file runs.

Source: Pillow, src/libImaging/Resample.c.
"""

from __future__ import annotations

import PIL
import torch
from torch import Tensor, nn

from featcache.backbones.transforms import Transform
from featcache.heads.neighbour_module import FixedNeighbours, Neighbours
from featcache.inference.classifier import Classifier

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_UNIT = float(1 << 22)
_WIDTH_FIRST_ALWAYS = int(PIL.__version__.split(".")[0]) < 13


class WholeNetwork(nn.Module):
    """(N, H, W, 3) uint8 RGB, of any size -> float32 (N, C): probabilities, or values where a head predicts numbers.

    Resize, normalisation, backbones, pooling and head, in fp32 on the CPU.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.layers = [branch.layers for branch in classifier.images.branches]
        self.resizers = nn.ModuleList(Resizer(branch.backbone.spec.transform) for branch in classifier.images.branches)
        self.backbones = nn.ModuleList(branch.backbone.module() for branch in classifier.images.branches)
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


class Resizer(nn.Module):
    """(N, 3, H, W) uint8 of any size -> (N, 3, S, S) uint8, as `Transform.resize_image` does it for each image."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.side = transform.image_size
        self.crop = transform.resize == "crop"
        self.shorter_side = float(transform.resize_size or transform.image_size)
        self.interpolation = transform.interpolation

    def forward(self, images: Tensor) -> Tensor:
        """Resize, and take the centre if the transform crops."""
        sizes = [torch.scalar_tensor(images.shape[dim], dtype=torch.float64) for dim in (2, 3)]
        targets = self._targets(*sizes)
        rows, columns = (
            self._weights(images.shape[dim], size, target)
            for dim, size, target in zip((2, 3), sizes, targets, strict=True)
        )
        values = images.to(torch.float64)
        wide_first = round_to_bytes(rows @ round_to_bytes(values @ columns.T))
        if _WIDTH_FIRST_ALWAYS:
            return wide_first.to(torch.uint8)
        tall_first = round_to_bytes(round_to_bytes(rows @ values) @ columns.T)
        shrinks = [size - target for size, target in zip(sizes, targets, strict=True)]
        is_tall = (shrinks[0] > 0) & (shrinks[0] > 2 * shrinks[1])
        return torch.where(is_tall, tall_first, wide_first).to(torch.uint8)

    def _targets(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The size that Pillow resizes to, before anything is cropped."""
        if not self.crop:
            whole = torch.full_like(height, self.side)
            return whole, whole
        shorter = torch.minimum(height, width)
        return (self.shorter_side * height / shorter).floor(), (self.shorter_side * width / shorter).floor()

    def _weights(self, pixels: int, size: Tensor, target: Tensor) -> Tensor:
        """float64 (S, `pixels`): how much of each pixel goes into each that is kept, in units of 2^-22.

        `size`: `pixels` as a tensor; `target`: the resized side, of which the middle S pixels are kept.
        """
        scale = size / target
        stretch = scale.clamp(min=1.0)
        support = _SUPPORT[self.interpolation] * stretch
        # Halves are rounded to even, as torchvision's crop does.
        first = ((target - self.side) / 2.0).round()
        centre = ((torch.arange(self.side, dtype=torch.float64) + first + 0.5) * scale)[:, None]
        pixel = torch.arange(pixels, dtype=torch.float64)[None, :]
        seen = (pixel >= (centre - support + 0.5).clamp(min=0.0).floor()) & (pixel < (centre + support + 0.5).floor())
        weights = self._filter((pixel - centre + 0.5) * (1.0 / stretch)) * seen
        weights = weights / weights.sum(dim=1, keepdim=True)
        return (weights * _UNIT + torch.where(weights < 0, -0.5, 0.5)).trunc()

    def _filter(self, distance: Tensor) -> Tensor:
        x = distance.abs()
        if self.interpolation == "bilinear":
            return (1.0 - x).clamp(min=0.0)
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def round_to_bytes(sums: Tensor) -> Tensor:
    """Sums in units of 2^-22 -> whole bytes; halves are rounded up."""
    return (sums / _UNIT + 0.5).floor().clamp(min=0.0, max=255.0)
