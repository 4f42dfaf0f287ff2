"""What every backbone is: frozen, described exactly, and a function from images to rows.

`pixels` is one too. So the preprocessed-data-set cache, the baselines on raw pixels and the deep features
share one path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbones.layers import Layer
from featcache.backbones.transforms import Transform

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """Where a backbone's weights came from, and per layer the SHA-256 over the tensors it depends on."""

    source: str
    digests: dict[str, str]


class Backbone(ABC):
    """A frozen network: images in, one row of features per image and layer out.

    `parameters` counts the frozen parameters that the layers depend on, `flops_per_image` their
    multiply-adds times two for one image. `notes` and `warnings` are sentences for the user.
    """

    name: str
    layers: tuple[Layer, ...]
    pool: str
    transform: Transform
    weights: WeightsRecord | None
    parameters: int
    flops_per_image: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    #: What `precision` and `dtype` mean here: `pixels` computes and stores bytes, whatever is asked.
    stores_bytes: bool = False
    #: Whether `compile` does anything.
    compiles: bool = False
    #: How many images the compiled program takes, no more and no fewer; None while any number may come.
    fixed_batch: int | None = None

    @property
    def feature_dims(self) -> dict[str, int]:
        """D of each layer, measured by a forward pass."""
        return {layer.name: layer.feature_dim for layer in self.layers}

    def resize(self, image: np.ndarray) -> np.ndarray:
        """One decoded image (H, W, 3) uint8 -> (S, S, 3) uint8; thread-safe."""
        return self.transform.resize_image(image)

    @abstractmethod
    def place(self, device: str, precision: str) -> None:
        """Brings the network to `device` ("cpu", "cuda", ...) to compute in `precision` (fp32, bf16, fp16)."""

    def compile(self, batch_size: int, runner: str = "compiled") -> None:
        """From now on one program for `batch_size` images computes, until `place` is called again.

        `runner`: "compiled" (torch.compile) or "openvino" (bf16 and fp32 on a CPU). It is made when it first runs,
        which takes from a second to minutes; called again, it is taken up again. Only where `compiles` says so.
        Raises MissingExtra.
        """
        raise NotImplementedError(f"{self.name} computes nothing that could be compiled")

    @abstractmethod
    def features(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        """(N, S, S, 3) uint8, anywhere -> {layer: (N, D)} on the backbone's device; float32, or uint8 for pixels."""

    @abstractmethod
    def module(self) -> nn.Module:
        """The same as a torch module, to be exported: (N, 3, S, S) uint8 -> {layer: (N, D)}, in fp32 on the CPU.

        It takes the backbone along: call it on one that nobody computes with any more.
        """
