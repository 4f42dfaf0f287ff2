"""`Program`: computes features with a network on one device, in one precision, by one runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from featcache.backbones.spec import BackboneSpec

    #: uint8 (N, 3, S, S) on the program's device -> {layer: (N, D)}.
    Compute = Callable[[Tensor], Mapping[str, Tensor]]
    #: uint8 (N, S, S, 3) -> {layer: (N, D)}, without torch.
    Copy = Callable[[np.ndarray], Mapping[str, np.ndarray]]

_LEAST_BATCH = 8


class Program:
    """Computes the features of batches of images.

    Args:
        spec: The description of the backbone.
        compute: uint8 (N, 3, S, S) -> {layer: (N, D)}.
        device: "cpu", "cuda", ...
        precision: "fp32", "bf16" or "fp16"; "uint8" for pixels.
        runner: One of `runners.RUNNERS`.
        batch_size: The number of images of every batch if it is fixed; None if any number is accepted.
        alone: Whether each image is computed separately, so that batches need no padding.
        resized: Returns the same program for another batch size.
        copy: The same function on the host without torch, for `pixels`, where nothing is computed.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        compute: Compute,
        *,
        device: str,
        precision: str,
        runner: str,
        batch_size: int | None = None,
        alone: bool = False,
        resized: Callable[[int], Program] | None = None,
        copy: Copy | None = None,
    ) -> None:
        self.spec, self.device, self.precision, self.runner = spec, device, precision, runner
        self.batch_size, self.alone, self.copy = batch_size, alone, copy
        self._compute, self._resized = compute, resized

    def features(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Compute the features of a batch.

        Args:
            images: uint8 (N, S, S, 3), on any device.

        Returns:
            {layer: (N, D)} on the program's device; float32, or uint8 for pixels.
        """
        import torch

        from featcache.backbones.fp32 import ieee_fp32

        with torch.inference_mode(), ieee_fp32():
            # The memory of (N, S, S, 3) is that of (N, 3, S, S) in channels-last: no copy.
            batch = torch.as_tensor(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return dict(self._compute(batch))

    def of_batches(self, images: int) -> Program:
        """The program for batches of at most `images` images: another one if the batch size is fixed."""
        if self.batch_size is None or self._resized is None:
            return self
        return self._resized(images)

    def batch_size_for(self, images: int) -> int:
        """The size to which a batch of `images` images is padded, so that no row depends on the number of images."""
        if self.alone:
            return images
        # With a power of two of at least 8, a row does not depend on the rest of the batch (measured: measurements.md).
        return self.batch_size or max(_LEAST_BATCH, 1 << (images - 1).bit_length())
