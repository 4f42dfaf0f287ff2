"""The forward pass of one backbone: images in, rows of features out, in batches that fit into the device's memory.

Batches are padded to a power of two of at least 8, or to one size: then a row is bit for bit the same at any position
in the batch and next to any other images (measured for VGG16 and ResNet-18, eager, on a CPU; SqueezeNet rounds
differently in batches of 8 and of 16).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.program import Program
from featcache.errors import ExtractionError
from featcache.extraction.resizing import HostResizing, Packed, Prepared, Resizing, join
from featcache.extraction.stages import Stages
from featcache.extraction.transfer import HostArrays, PendingArrays, in_flight

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_BATCH = 8

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Features = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Features of some images.

    Args:
        images: Their numbers: (n,).
        views: The view number of each row: (n,); 0 is the plain image.
        features: {layer: (n, D)} in the storage type.
    """

    images: Numbers
    views: Numbers
    features: Features


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Decoded images on their way to the device.

    Args:
        images: Their numbers: (n,).
        views: The view number of each: (n,); 0 is the plain image.
        packed: The n images.
    """

    images: Numbers
    views: Numbers
    packed: Packed

    def __len__(self) -> int:
        return len(self.images)

    def split(self, count: int) -> tuple[Batch, Batch]:
        """The first `count` images, and the rest."""
        first, rest = slice(None, count), slice(count, None)
        return (
            Batch(images=self.images[first], views=self.views[first], packed=self.packed[first]),
            Batch(images=self.images[rest], views=self.views[rest], packed=self.packed[rest]),
        )

    def join(self, other: Batch) -> Batch:
        """This batch, followed by the other."""
        return Batch(
            images=np.concatenate([self.images, other.images]),
            views=np.concatenate([self.views, other.views]),
            packed=join(self.packed, other.packed),
        )


@dataclass(kw_only=True, eq=False)
class ForwardPass:
    """Computes rows in batches. Where memory does not suffice, the batch size is halved for the rest of the run.

    Args:
        program: The network on its device.
        dtype: The storage type of the rows.
        batch_size: Images per forward pass, at most.
        augmentation, view_seed: How the augmented views of an image are made.
        resizing: Where images are resized; None: on the host.
        one_shape: Pad every batch to `batch_size`, so that no row depends on the number of images. Else to a power of
            two, from which on most networks round alike.
        stages: Records what the consumer waits for.
        before_first: Called once, with the first batch, before it is computed.
    """

    program: Program
    dtype: str
    batch_size: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    view_seed: int = 0
    resizing: Resizing = None  # type: ignore[assignment]
    one_shape: bool = False
    stages: Stages = field(default_factory=Stages)
    before_first: Callable[[Packed], None] | None = None
    _waiting: Batch | None = field(default=None, init=False, repr=False)
    _flying: deque[tuple[Batch, PendingArrays | HostArrays]] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        self.resizing = self.resizing or HostResizing(self.program.spec.transform)

    def prepare(self, image: Bytes, digest: bytes, view: int) -> Prepared:
        """One view of a decoded image, as it is sent to the device. Thread-safe.

        Args:
            image: uint8 (H, W, 3).
            digest: The SHA-256 of the image's encoded bytes, from which augmented views are drawn.
            view: The view's number; 0 is the plain image.
        """
        seen = self.augmentation.view(image, digest=digest, number=view, seed=self.view_seed)
        return self.resizing.prepare(seen, cropped=view > 0)

    def compute(self, batch: Batch) -> Iterator[Rows]:
        """Add images, and yield the rows that are ready: full batches, in the order in which images were added."""
        waiting = batch if self._waiting is None else self._waiting.join(batch)
        while len(waiting) >= self.batch_size:
            first, waiting = waiting.split(self.batch_size)
            yield from self._launch(first)
        self._waiting = waiting if len(waiting) else None

    def finish(self) -> Iterator[Rows]:
        """Compute the last, incomplete batch, and yield all remaining rows."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield from self._launch(waiting)
        while self._flying:
            yield self._next_rows()

    def features(self, images: Packed, dtype: str) -> Features:
        """Features of n images (n at least 1), computed in batches that fit into memory.

        Args:
            images: Packed images, or uint8 (n, S, S, 3).
            dtype: The type of the result, "float32" or "float16".

        Returns:
            {layer: (n, D)}.

        Raises:
            ExtractionError: Not even the smallest batch fits.
        """
        arrived = [returning.arrays() for returning in self._submit(images, dtype)]
        return {name: np.concatenate([block[name] for block in arrived]) for name in arrived[0]}

    def on_cpu(self, images: Packed, program: Program) -> Features:
        """Features computed by another program, on the CPU, from the same resized images: {layer: (n, D)} float32."""
        resized = to_numpy(self.resizing.batch(images, len(images)))
        blocks = []
        for start in range(0, len(resized), _LEAST_BATCH):
            block = resized[start : start + _LEAST_BATCH]
            padded = np.zeros((program.batch_size_for(len(block)), *block.shape[1:]), np.uint8)
            padded[: len(block)] = block
            blocks.append({name: rows[: len(block)].float().numpy() for name, rows in program.features(padded).items()})
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _launch(self, batch: Batch) -> Iterator[Rows]:
        if self.before_first is not None:
            before, self.before_first = self.before_first, None
            before(batch.packed)
        with self.stages.measure("compute"):
            for returning in self._submit(batch.packed, self.dtype):
                # A batch that did not fit returns in parts.
                part, batch = batch.split(returning.count)
                self._flying.append((part, returning))
        while len(self._flying) > in_flight(self.resizing.device):
            yield self._next_rows()

    def _next_rows(self) -> Rows:
        batch, returning = self._flying.popleft()
        with self.stages.measure("compute"):
            return Rows(images=batch.images, views=batch.views, features=returning.arrays())

    def _submit(self, images: Packed, dtype: str) -> list[PendingArrays | HostArrays]:
        """Send images to the device, in batches that fit into its memory."""
        blocks: list[PendingArrays | HostArrays] = []
        done = 0
        while done < len(images):
            batch = images[done : done + self.batch_size]
            features = self._copy_features(batch, dtype) if self.program.copy else self._forward(batch, dtype)
            if features is not None:
                blocks.append(features)
                done += len(batch)
        return blocks

    def _copy_features(self, images: Packed, dtype: str) -> HostArrays:
        """The batch's features where the program only copies pixels; needs no torch."""
        assert self.program.copy is not None
        copied = self.program.copy(to_numpy(self.resizing.batch(images, len(images))))
        return HostArrays({name: value.astype(dtype, copy=False) for name, value in copied.items()})

    def _forward(self, images: Packed, dtype: str) -> PendingArrays | None:
        """The batch's features, or None where memory did not suffice and the batch size was halved."""
        import torch

        program = self.program
        try:
            size = self.batch_size if self.one_shape and not program.alone else program.batch_size_for(len(images))
            computed = program.features(self.resizing.batch(images, size))
            stored = getattr(torch, dtype)
            return PendingArrays({name: value[: len(images)].to(stored) for name, value in computed.items()})
        except torch.OutOfMemoryError as error:
            if self.batch_size <= _LEAST_BATCH:
                raise ExtractionError(
                    f"{program.spec.name} does not fit into the device's memory with {_LEAST_BATCH} images",
                    hint="use --device cpu, a smaller --image-size or --precision bf16",
                ) from error
        self.batch_size = max(_LEAST_BATCH, self.batch_size // 2)
        self.program = self.program.of_batches(self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def to_numpy(images: Bytes | Tensor) -> Bytes:
    """The images as an array on the host, whether they were resized there or on the device."""
    return images if isinstance(images, np.ndarray) else images.cpu().numpy()


def require_finite(rows: Rows, name_of: Callable[[int], str]) -> None:
    """Raise ExtractionError, naming layer and image, where a feature is not finite.

    Args:
        rows: Computed rows.
        name_of: Returns the id of an image, by its number.
    """
    for layer, values in rows.features.items():
        if values.dtype.kind != "f":
            continue
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise _not_finite(layer, values[int(bad[0])], [name_of(int(rows.images[row])) for row in bad])


def _not_finite(layer: str, row: npt.NDArray[Any], names: Sequence[str]) -> ExtractionError:
    nan = bool(np.isnan(row).any())
    reason = "the backbone computes no number for it" if nan else f"larger than {row.dtype} can hold"
    return ExtractionError(
        f"layer {layer} gives {'NaN' if nan else 'infinity'} for {names[0]}"
        f"{f' and {len(names) - 1} more of its batch' if len(names) > 1 else ''}: {reason}",
        hint="check the weights" if nan else "extract again with --dtype float32",
    )
