"""Where images are resized: on the host, each where it was decoded, or on the device, in batches.

Both give the same bytes (`backbones.resampling`), so this is a question of time alone. A GPU resizes for next to
nothing, and small images travel faster than resized ones; to a CPU the matrices cost 14 to 35 times what Pillow does.
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
from featcache.extraction.transfer import stacked

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]
#: An image on its way, and whether all that is left to do is to squash it to the backbone's size.
Prepared = tuple[Bytes, bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Images of one size: `images` (k, H, W, 3), and the places (k,) they have among all, ascending.

    `squash`: they are brought straight to the backbone's size, whatever its transform says.
    """

    places: npt.NDArray[np.int64]
    images: Bytes
    squash: bool

    def between(self, start: int, stop: int) -> Group:
        """Those at places from `start` to before `stop`, which are counted from there."""
        first, last = np.searchsorted(self.places, (start, stop))
        return Group(places=self.places[first:last] - start, images=self.images[first:last], squash=self.squash)


@dataclass(frozen=True, kw_only=True, eq=False)
class Originals:
    """Images in their own sizes, grouped: what travels to a device that resizes."""

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
    """Images that travel together, and others behind them."""
    if isinstance(first, Originals) and isinstance(second, Originals):
        moved = tuple(
            Group(places=group.places + len(first), images=group.images, squash=group.squash) for group in second.groups
        )
        return Originals(count=len(first) + len(second), groups=first.groups + moved)
    if isinstance(first, Originals) or isinstance(second, Originals):
        raise TypeError("images that were packed for the device cannot travel with others")
    return np.concatenate([first, second])


class Resizing(ABC):
    """The way of decoded images to a batch of the backbone's size."""

    def __init__(self, transform: Transform, device: str = "cpu") -> None:
        self.transform = transform
        self.device = device

    def on_host(self, image: Bytes, *, cropped: bool) -> Bytes:
        """(H, W, 3) -> (S, S, 3), with Pillow."""
        return self.transform.resize_image(image, cropped=cropped)

    @abstractmethod
    def prepared(self, image: Bytes, *, cropped: bool) -> Prepared:
        """What is kept of one decoded image (H, W, 3); `cropped`: it is an augmented view. In decoding threads."""

    @abstractmethod
    def packed(self, images: Sequence[Prepared]) -> Packed:
        """Prepared images as they travel together. In decoding threads."""

    @abstractmethod
    def batch(self, images: Packed, size: int) -> Bytes | Tensor:
        """(size, S, S, 3) uint8 on the host or the device: the images, and black ones behind them."""


class HostResizing(Resizing):
    """Pillow, in the decoding threads."""

    def prepared(self, image: Bytes, *, cropped: bool) -> Prepared:
        return self.on_host(image, cropped=cropped), True

    def packed(self, images: Sequence[Prepared]) -> Bytes:
        side = self.transform.image_size
        return stacked([image for image, _ in images], (side, side, 3), self.device)

    def batch(self, images: Packed, size: int) -> Bytes:
        if isinstance(images, Originals):
            raise TypeError("images that were packed for the device cannot be resized on the host")
        if size == len(images):
            return images
        padded = np.zeros((size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return padded


class DeviceResizing(Resizing):
    """Matrix products, right in front of the network, but for what Pillow does better before."""

    def __init__(self, transform: Transform, device: str = "cpu") -> None:
        import torch

        super().__init__(transform, device)
        self.resampler = Resampler(transform=transform, device=torch.device(device))

    def prepared(self, image: Bytes, *, cropped: bool) -> Prepared:
        # Views have sizes of their own, and a matrix for each would cost more than Pillow.
        if cropped or not self.resampler.takes(*image.shape[:2]):
            return self.on_host(image, cropped=cropped), True
        return image, self.transform.resize == "squash"

    def packed(self, images: Sequence[Prepared]) -> Originals:
        places: dict[tuple[tuple[int, ...], bool], list[int]] = {}
        for place, (image, squash) in enumerate(images):
            places.setdefault((image.shape, squash), []).append(place)
        groups = tuple(
            Group(
                places=np.asarray(some, np.int64),
                images=stacked([images[place][0] for place in some], shape, self.device),
                squash=squash,
            )
            for (shape, squash), some in places.items()
        )
        return Originals(count=len(images), groups=groups)

    def batch(self, images: Packed, size: int) -> Tensor:
        import torch

        if not isinstance(images, Originals):
            images = self.packed([(image, True) for image in images])
        side, device = self.transform.image_size, self.resampler.device
        batch = torch.zeros((size, side, side, 3), dtype=torch.uint8, device=device)
        for group in images.groups:
            # Without non_blocking it would wait for the batch that is in flight.
            arrived = torch.from_numpy(group.images).to(device, non_blocking=True)
            places = torch.from_numpy(group.places).to(device, non_blocking=True)
            batch[places] = self.resampler.resized(arrived, cropped=group.squash)
        return batch


def resolve_resizing(asked: str, backbone: BackboneSpec, device: str, reporter: Reporter) -> Resizing:
    """What `--resize-on` means here: "host", "device", or "auto": a GPU, where it gives the same bytes as Pillow.

    Raises ExtractionError where "device" would give other bytes.
    """
    idle = device == "cpu" or backbone.stores_bytes
    if asked == "host" or (asked == "auto" and idle):
        return HostResizing(backbone.transform, device)
    resizing = DeviceResizing(backbone.transform, device)
    if _agrees(resizing.resampler):
        return resizing
    told = f"{device} does not resize to the bytes that Pillow {PIL.__version__} gives"
    if asked == "device":
        raise ExtractionError(told, hint="use --resize-on host")
    reporter.warn(f"{told}: images are resized on the host")
    return HostResizing(backbone.transform, device)


def _agrees(resampler: Resampler) -> bool:
    try:
        return agrees_with_pillow(resampler)
    except NotImplementedError:
        # A device that cannot compute with integers.
        return False
