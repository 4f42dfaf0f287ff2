"""Between host and device, so that neither waits where they need not.

A GPU copies from and to pinned memory by itself, in the order in which copies and kernels were given to it: so
images go out, are computed and come back behind the host's back, and the host looks for a batch's features when it has
given out the next one. Elsewhere the same calls are finished when they return.
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
    """How many batches may be under way while the host does something else."""
    return 1 if device.startswith("cuda") else 0


def stacked(images: Sequence[Bytes], shape: tuple[int, ...], device: str) -> Bytes:
    """(n, *shape): copies of the images in memory that `device` copies from by itself."""
    batch = _pinned((len(images), *shape)) if device.startswith("cuda") else np.empty((len(images), *shape), np.uint8)
    for place, image in enumerate(images):
        batch[place] = image
    return batch


class Arrived:
    """Arrays that are on the host already, by name."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.count = len(next(iter(arrays.values())))
        self._arrays = dict(arrays)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """They are there."""
        return self._arrays


class Returning:
    """Tensors on their way to the host, by name; they may be under way until `arrays` is called."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.count = len(next(iter(tensors.values())))
        self._tensors = {name: _copied(tensor) for name, tensor in tensors.items()}
        self._arrived = _event_behind(next(iter(tensors.values())))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def _pinned(shape: tuple[int, ...]) -> Bytes:
    import torch

    batch: Bytes = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return batch


def _copied(tensor: Tensor) -> Tensor:
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    # Copying to ordinary memory would wait for everything that was given to the GPU before.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _event_behind(tensor: Tensor) -> torch.cuda.Event | None:
    """What happens when all that was given to the tensor's GPU so far is done; None on other devices."""
    import torch

    if tensor.device.type != "cuda":
        return None
    # The stream's methods have no types.
    stream: Any = torch.cuda.current_stream(tensor.device)
    event: torch.cuda.Event = stream.record_event()
    return event
