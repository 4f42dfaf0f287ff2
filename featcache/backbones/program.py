"""What computes features: a network on a device, in a precision, by a runner."""

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
    """A backbone that computes.

    Args:
        spec: The backbone.
        compute: uint8 (N, 3, S, S) -> {layer: (N, D)}.
        device: "cpu", "cuda", ...
        precision: "fp32", "bf16" or "fp16"; "uint8" for pixels.
        runner: What computes: see `runners.RUNNERS`.
        batch_size: The number of images of every batch where the program has one shape; None where it takes any.
        alone: Each image is computed by itself, so that no batch needs to be padded.
        resized: Gives the same program for batches of another size.
        copy: The same on the host, without torch, where nothing is computed.
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
            images: uint8 (N, S, S, 3), anywhere.

        Returns:
            {layer: (N, D)} on the program's device; float32, or uint8 for pixels.
        """
        import torch

        from featcache.backbones.fp32 import ieee_fp32

        with torch.inference_mode(), ieee_fp32():
            # (N, S, S, 3) in memory is (N, 3, S, S) in channels-last: no copy.
            batch = torch.as_tensor(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return dict(self._compute(batch))

    def of_batches(self, images: int) -> Program:
        """The program for batches of at most so many images: another one where it has one shape."""
        if self.batch_size is None or self._resized is None:
            return self
        return self._resized(images)

    def padded(self, images: int) -> int:
        """To how many images a batch of `images` is filled up, so that no row depends on how many there are."""
        if self.alone:
            return images
        # From a power of two of at least 8 on, a row comes out the same in any company (measured: measurements.md).
        return self.batch_size or max(_LEAST_BATCH, 1 << (images - 1).bit_length())
