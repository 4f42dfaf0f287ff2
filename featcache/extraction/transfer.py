"""Asynchronous copies between host and device.

A GPU copies from and to pinned memory by itself, in the order in which copies and kernels were submitted. So the host
submits the next batch before it waits for the features of the one before. On other devices the same calls return when
they are finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]


def in_flight(device: str) -> int:
    """How many batches the device may compute while the host does something else."""
    return 1 if device.startswith("cuda") else 0


def stack_images(images: Sequence[Bytes], shape: tuple[int, ...], device: str) -> Bytes:
    """Copy images into one array uint8 (n, *shape), in pinned memory for a CUDA device."""
    size = (len(images), *shape)
    batch = _allocate_pinned(size) if device.startswith("cuda") else np.empty(size, np.uint8)
    for place, image in enumerate(images):
        batch[place] = image
    return batch


class HostArrays:
    """Arrays on the host, by name, with the interface of `PendingArrays`."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.count = len(next(iter(arrays.values())))
        self._arrays = dict(arrays)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays."""
        return self._arrays


class PendingArrays:
    """Tensors that are being copied to the host, by name; `arrays` waits for them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.count = len(next(iter(tensors.values())))
        self._tensors = {name: _copy_to_host(tensor) for name, tensor in tensors.items()}
        self._arrived = _event_after(next(iter(tensors.values())))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Wait for the copies, and return the arrays."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def _allocate_pinned(shape: tuple[int, ...]) -> Bytes:
    import torch

    batch: Bytes = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return batch


def _copy_to_host(tensor: Tensor) -> Tensor:
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    # A copy to memory that is not pinned would wait for everything that was submitted to the GPU before.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _event_after(tensor: Tensor) -> torch.cuda.Event | None:
    """An event after all work submitted to the tensor's GPU so far; None on other devices."""
    import torch

    if tensor.device.type != "cuda":
        return None
    # The stream's methods have no type annotations.
    stream: Any = torch.cuda.current_stream(tensor.device)
    event: torch.cuda.Event = stream.record_event()
    return event
