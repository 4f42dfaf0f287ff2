"""Resizing of images on the host, in the decoding threads, or on the device, in batches.

Both give the same bytes (`backbones.resampling`), so the choice only affects speed. A GPU resizes in almost no time,
and small images are copied faster than resized ones; on a CPU the matrices take 14 to 35 times as long as Pillow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL

from featcache.backbones.resampling import Resampler, agrees_with_pillow
from featcache.backbones.spec import BackboneSpec
from featcache.backbones.transforms import Transform
from featcache.errors import ExtractionError
from featcache.extraction.reporting import Reporter
from featcache.extraction.transfer import stack_images

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]
#: An image, and whether the remaining step is to squash it to the backbone's size, ignoring its aspect ratio.
Prepared = tuple[Bytes, bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Images of one size.

    Args:
        places: Their indices in the batch, ascending: (k,).
        images: uint8 (k, H, W, 3).
        squash: Resize them directly to the backbone's size, whatever its transform is.
    """

    places: npt.NDArray[np.int64]
    images: Bytes
    squash: bool

    def between(self, start: int, stop: int) -> Group:
        """The images at places `start` to `stop` - 1, with places relative to `start`."""
        first, last = np.searchsorted(self.places, (start, stop))
        return Group(places=self.places[first:last] - start, images=self.images[first:last], squash=self.squash)


@dataclass(frozen=True, kw_only=True, eq=False)
class Originals:
    """Images in their original sizes, grouped by size: the input of a device that resizes."""

    count: int
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> Originals:
        start, stop, _ = part.indices(self.count)
        groups = (group.between(start, stop) for group in self.groups)
        return Originals(count=stop - start, groups=tuple(group for group in groups if len(group.places)))


Packed = Bytes | Originals


def join(first: Packed, second: Packed) -> Packed:
    """Packed images, followed by others."""
    if isinstance(first, Originals) and isinstance(second, Originals):
        moved = tuple(
            Group(places=group.places + len(first), images=group.images, squash=group.squash) for group in second.groups
        )
        return Originals(count=len(first) + len(second), groups=first.groups + moved)
    if isinstance(first, Originals) or isinstance(second, Originals):
        raise TypeError("images that were packed for the device cannot be joined with others")
    return np.concatenate([first, second])


class Resizing(ABC):
    """Turns decoded images into a batch of the backbone's size, in three steps: prepare, pack, batch."""

    def __init__(self, transform: Transform, device: str = "cpu") -> None:
        self.transform = transform
        self.device = device

    def on_host(self, image: Bytes, *, cropped: bool) -> Bytes:
        """(H, W, 3) -> (S, S, 3) uint8, with Pillow."""
        return self.transform.resize_image(image, cropped=cropped)

    @abstractmethod
    def prepare(self, image: Bytes, *, cropped: bool) -> Prepared:
        """Prepare one decoded image, uint8 (H, W, 3). Called in decoding threads. `cropped`: an augmented view."""

    @abstractmethod
    def pack(self, images: Sequence[Prepared]) -> Packed:
        """Combine prepared images for the copy to the device. Called in decoding threads."""

    @abstractmethod
    def batch(self, images: Packed, size: int) -> Bytes | Tensor:
        """The images, padded with black ones: uint8 (size, S, S, 3), on the host or the device."""


class HostResizing(Resizing):
    """Resizes with Pillow, in the decoding threads."""

    def prepare(self, image: Bytes, *, cropped: bool) -> Prepared:
        return self.on_host(image, cropped=cropped), True

    def pack(self, images: Sequence[Prepared]) -> Bytes:
        side = self.transform.image_size
        return stack_images([image for image, _ in images], (side, side, 3), self.device)

    def batch(self, images: Packed, size: int) -> Bytes:
        if isinstance(images, Originals):
            raise TypeError("images that were packed for the device cannot be resized on the host")
        if size == len(images):
            return images
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return padded


class DeviceResizing(Resizing):
    """Resizes by matrix products on the device. Augmented views, and sizes it does not take, are resized by Pillow."""

    def __init__(self, transform: Transform, device: str = "cpu") -> None:
        import torch

        super().__init__(transform, device)
        self.resampler = Resampler(transform=transform, device=torch.device(device))

    def prepare(self, image: Bytes, *, cropped: bool) -> Prepared:
        # Each view has its own size, and a matrix for each would take longer than Pillow.
        if cropped or not self.resampler.takes(*image.shape[:2]):
            return self.on_host(image, cropped=cropped), True
        return image, self.transform.resize == "squash"

    def pack(self, images: Sequence[Prepared]) -> Originals:
        places: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for place, (image, squash) in enumerate(images):
            places.setdefault((image.shape, squash), []).append(place)
        groups = tuple(
            Group(
                places=np.asarray(some, np.int64),
                images=stack_images([images[place][0] for place in some], shape, self.device),
                squash=squash,
            )
            for (shape, squash), some in places.items()
        )
        return Originals(count=len(images), groups=groups)

    def batch(self, images: Packed, size: int) -> Tensor:
        import torch

        if not isinstance(images, Originals):
            images = self.pack([(image, True) for image in images])
        side, device = self.transform.image_size, self.resampler.device
        batch = torch.zeros((size, side, side, 3), dtype=torch.uint8, device=device)
        for group in images.groups:
            # Without non_blocking it would wait for the batch that is being computed.
            arrived = torch.from_numpy(group.images).to(device, non_blocking=True)
            places = torch.from_numpy(group.places).to(device, non_blocking=True)
            batch[places] = self.resampler.resize(arrived, cropped=group.squash)
        return batch


def resolve_resizing(requested: str, backbone: BackboneSpec, device: str, reporter: Reporter) -> Resizing:
    """The resizing that `--resize-on` selects on this machine.

    Args:
        requested: "host": Pillow, on the CPU. "device": where the network computes. "auto": as "device" where that is
            no CPU and gives the same bytes as Pillow, else as "host".
        backbone: Gives the transform.
        device: Where the network computes.
        reporter: Receives a warning where "auto" cannot use the GPU.

    Raises:
        ExtractionError: "device" is requested and would give other bytes.
    """
    idle = device == "cpu" or backbone.stores_bytes
    if requested == "host" or (requested == "auto" and idle):
        return HostResizing(backbone.transform, device)
    resizing = DeviceResizing(backbone.transform, device)
    if _agrees_with_pillow(resizing.resampler):
        return resizing
    problem = f"{device} does not give the same bytes as Pillow {PIL.__version__} when it resizes"
    if requested == "device":
        raise ExtractionError(problem, hint="use --resize-on host")
    reporter.warn(f"{problem}: images are resized on the host")
    return HostResizing(backbone.transform, device)


def _agrees_with_pillow(resampler: Resampler) -> bool:
    try:
        return agrees_with_pillow(resampler)
    except NotImplementedError:
        # A device that cannot compute with integers.
        return False
