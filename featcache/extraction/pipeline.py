"""Samples in, rows of features out: decoding runs ahead in threads while the backbone computes.

Pillow releases the interpreter while it decodes and resizes, so threads are enough and nothing is copied
between processes. Batches are padded to a power of two of at least 8: from there on a row comes out bit for
bit the same at any position and in any company (measured for VGG16 and ResNet-18, eager, on a CPU; SqueezeNet
rounds otherwise in batches of 8 than of 16).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.program import Program
from featcache.errors import ExtractionError, ImageError
from featcache.extraction.decoder import Decoder
from featcache.extraction.resizing import HostResizing, Packed, Prepared, Resizing
from featcache.extraction.stages import Stages
from featcache.extraction.transfer import Returning, in_flight
from featcache.images.sources import ImageSource, Sample

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_BATCH = 8

Bytes = npt.NDArray[np.uint8]
Views = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One image that could not be read or decoded, and the error that says why."""

    row: int
    error: ImageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Features of some of the samples that were given: `index` (n,) says which, in ascending order.

    `features`: {layer: (n, D)} in the storage dtype.
    """

    index: npt.NDArray[np.int64]
    features: dict[str, npt.NDArray[np.generic]]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    index: npt.NDArray[np.int64]
    images: Packed
    failures: tuple[Failure, ...]


@dataclass(kw_only=True)
class Pipeline:
    """Reads, decodes, resizes and computes. The batch size halves for good when memory does not suffice.

    Args:
        source: Where images are read.
        program: What computes; None for a pipeline that only decodes, which needs `resizing`.
        dtype: The storage type of the rows.
        batch_size: Images per forward pass, at most.
        workers: Threads that decode.
        augmentation, view_seed: Which views of an image there are.
        resizing: Where images are resized; None: on the host.
        stages: Notes what the consumer of `rows` waited for.
        decoder: May be shared with other pipelines.
        one_shape: Every batch is filled up to `batch_size`, so that no row depends on how many there are. Else to a
            power of two, after which most networks round alike.
    """

    source: ImageSource
    program: Program | None
    dtype: str
    batch_size: int
    workers: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    view_seed: int = 0
    resizing: Resizing | None = None
    stages: Stages = field(default_factory=Stages)
    decoder: Decoder | None = None
    one_shape: bool = False
    _decoder: Decoder = field(init=False, repr=False)
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _resizing: Resizing = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._decoder = self.decoder or Decoder(source=self.source)
        self._resizing = self.resizing or HostResizing(self._program.spec.transform)
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")

    @property
    def _program(self) -> Program:
        if self.program is None:
            raise TypeError("a pipeline without a program only decodes")
        return self.program

    def close(self) -> None:
        """Stops decoding; what has not been started, and the rest of what has, is dropped."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def rows(self, samples: Sequence[Sample], digests: Bytes | None, views: Views | None = None) -> Iterator[Rows]:
        """The features of `samples`, batch by batch, in order.

        `digests` (n, 32): what each must hash to; None where any bytes will do, and there are plain rows only.
        `views` (n,): which view of its image each row is; None: all are plain.

        Raises ExtractionError, naming layer and image, where a feature is not finite.
        """
        flying: deque[tuple[_Decoded, list[Returning]]] = deque()
        for decoded in self._decoded(samples, digests, _plain(samples) if views is None else views):
            with self.stages.measured("compute"):
                flying.append((decoded, self._launched(decoded.images, self.dtype)))
            while len(flying) > in_flight(self._resizing.device):
                yield self._landed(*flying.popleft(), samples)
        while flying:
            yield self._landed(*flying.popleft(), samples)

    def images(self, samples: Sequence[Sample], digests: Bytes, views: Views | None = None) -> Packed:
        """Those of `samples` that can be decoded, as `features` takes them."""
        numbers = _plain(samples) if views is None else views
        return self._decode(samples, digests, numbers, range(len(samples))).images

    def _decoded(self, samples: Sequence[Sample], digests: Bytes | None, views: Views) -> Iterator[_Decoded]:
        pending: deque[Future[_Decoded]] = deque()
        # The size is read anew: it may have been halved meanwhile.
        start = 0
        while start < len(samples) or pending:
            while start < len(samples) and len(pending) <= self.workers:
                rows = range(start, min(start + self.batch_size, len(samples)))
                pending.append(self._pool.submit(self._decode, samples, digests, views, rows))
                start = rows.stop
            with self.stages.measured("decode"):
                decoded = pending.popleft().result()
            yield decoded

    def _decode(self, samples: Sequence[Sample], digests: Bytes | None, views: Views, rows: range) -> _Decoded:
        images: list[Prepared] = []
        index: list[int] = []
        failures: list[Failure] = []
        last: tuple[Sample, Bytes] | None = None
        for row in rows:
            if self._closed.is_set():
                # Nobody waits for it any more, and large images take their time.
                break
            sample, expected = samples[row], None if digests is None else digests[row].tobytes()
            try:
                # The views of an image follow each other: it is decoded once for all of them.
                if last is None or last[0] != sample:
                    last = sample, self._decoder.image(sample, expected)
                images.append(self._prepared(last[1], expected, int(views[row])))
                index.append(row)
            except ImageError as error:
                failures.append(Failure(row=row, error=error))
        packed = self._resizing.packed(images)
        return _Decoded(index=np.asarray(index, np.int64), images=packed, failures=tuple(failures))

    def _prepared(self, image: Bytes, expected: bytes | None, view: int) -> Prepared:
        if expected is None:
            return self._resizing.prepared(image, cropped=False)
        seen = self.augmentation.view(image, digest=expected, number=view, seed=self.view_seed)
        return self._resizing.prepared(seen, cropped=view > 0)

    def _landed(self, decoded: _Decoded, blocks: list[Returning], samples: Sequence[Sample]) -> Rows:
        with self.stages.measured("compute"):
            features = _joined(blocks)
            for name, values in features.items():
                _require_finite(values, name, [samples[row].id for row in decoded.index])
        return Rows(index=decoded.index, features=features, failures=decoded.failures)

    def features(self, images: Packed, dtype: str) -> dict[str, npt.NDArray[np.generic]]:
        """What `images` gave, or (n, S, S, 3), n at least 1 -> {layer: (n, D)} in `dtype`, in batches that fit.

        Raises ExtractionError where not even the smallest batch fits.
        """
        return _joined(self._launched(images, dtype))

    def on_cpu(self, images: Packed, program: Program) -> dict[str, npt.NDArray[np.generic]]:
        """The same by a program on the CPU, wherever this pipeline resizes: {layer: (n, D)} float32."""
        resized = torch_to_numpy(self._resizing.batch(images, len(images)))
        blocks = []
        for start in range(0, len(resized), _LEAST_BATCH):
            block = resized[start : start + _LEAST_BATCH]
            padded = np.zeros((program.padded(len(block)), *block.shape[1:]), np.uint8)
            padded[: len(block)] = block
            blocks.append({name: rows[: len(block)].float().numpy() for name, rows in program.features(padded).items()})
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _launched(self, images: Packed, dtype: str) -> list[Returning]:
        """Gives the images to the device, in batches that fit into its memory."""
        blocks: list[Returning] = []
        done = 0
        while done < len(images):
            batch = images[done : done + self.batch_size]
            features = self._forward(batch, dtype)
            if features is None:
                continue
            blocks.append(features)
            done += len(batch)
        return blocks

    def _forward(self, images: Packed, dtype: str) -> Returning | None:
        """The batch's features, or None where memory did not suffice and the batch size was halved."""
        import torch

        program = self._program
        try:
            size = self.batch_size if self.one_shape and not program.alone else program.padded(len(images))
            computed = program.features(self._resizing.batch(images, size))
            stored = getattr(torch, dtype)
            return Returning({name: value[: len(images)].to(stored) for name, value in computed.items()})
        except torch.OutOfMemoryError as error:
            if self.batch_size <= _LEAST_BATCH:
                raise ExtractionError(
                    f"{program.spec.name} does not fit into the device's memory with {_LEAST_BATCH} images",
                    hint="use --device cpu, a smaller --image-size or --precision bf16",
                ) from error
        self.batch_size = max(_LEAST_BATCH, self.batch_size // 2)
        self.program = self._program.of_batches(self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def torch_to_numpy(images: Bytes | Tensor) -> Bytes:
    """Images on the host, wherever they were resized."""
    return images if isinstance(images, np.ndarray) else images.cpu().numpy()


def _joined(blocks: Sequence[Returning]) -> dict[str, npt.NDArray[np.generic]]:
    """The features of all blocks, one behind the other; none where there are no blocks."""
    arrived = [block.arrays() for block in blocks]
    return {name: np.concatenate([block[name] for block in arrived]) for name in arrived[0]} if arrived else {}


def _plain(samples: Sequence[Sample]) -> Views:
    return np.zeros(len(samples), np.int64)


def _require_finite(values: npt.NDArray[np.generic], layer: str, ids: Sequence[str]) -> None:
    if values.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if not bad.size:
        return
    row = int(bad[0])
    nan = bool(np.isnan(values[row]).any())
    fits = "the backbone computes no number for it" if nan else f"larger than {values.dtype} can hold"
    raise ExtractionError(
        f"layer {layer} gives {'NaN' if nan else 'infinity'} for {ids[row]}"
        f"{f' and {bad.size - 1} more of its batch' if bad.size > 1 else ''}: {fits}",
        hint="check the weights" if nan else "extract again with --dtype float32",
    )
