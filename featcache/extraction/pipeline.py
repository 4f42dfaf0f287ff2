"""Images in, rows of features out: threads read and decode images ahead while backbones compute.

An image is read once and decoded once, for all backbones and views, and its digest is that of the same bytes that are
decoded. Pillow releases the interpreter lock while it decodes and resizes, so threads suffice and nothing is copied
between processes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.extraction.forward import Batch, ForwardPass, Numbers, Rows, require_finite
from featcache.extraction.resizing import Prepared
from featcache.images.decoding import decode
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Payload, digest

#: Called with an image's number and digest; gives for each backbone the numbers of the views to compute: 0 is the plain
#: image, others are augmented.
ViewsToCompute = Callable[[int, bytes], Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One image that could not be read or decoded.

    Args:
        image: Its number.
        digest: SHA-256 of its bytes; None where they could not be read.
        error: The reason.
    """

    image: int
    digest: bytes | None
    error: ImageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """The results of some images.

    Args:
        images: Numbers of the images that were read, and decoded if needed: (n,), ascending.
        digests: SHA-256 of their bytes: uint8 (n, 32).
        failures: The images that could not be read or decoded.
        rows: For each backbone the rows that are ready; they may belong to images of earlier blocks.
    """

    images: Numbers
    digests: npt.NDArray[np.uint8]
    failures: tuple[Failure, ...]
    rows: tuple[tuple[Rows, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """The results of some images, all at once.

    Args:
        rows: One for each backbone, over the same images.
        digests: SHA-256 of the bytes of the images that were read, by number.
        failures: The images that could not be read or decoded.
    """

    rows: tuple[Rows, ...]
    digests: dict[int, bytes]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    images: Numbers
    digests: npt.NDArray[np.uint8]
    failures: tuple[Failure, ...]
    batches: tuple[Batch | None, ...]


@dataclass(kw_only=True, eq=False)
class Pipeline:
    """Reads, digests and decodes images, and computes their rows with one or several backbones.

    Args:
        source: Where images are read.
        backbones: The forward passes.
        workers: Threads that read and decode.
        rows_per_image: Views per image; with more views, fewer images are decoded at a time.
        payloads: Images that have been read already, by number; an image is removed when it is used.
    """

    source: ImageSource
    backbones: Sequence[ForwardPass]
    workers: int
    rows_per_image: int = 1
    payloads: MutableMapping[int, Payload] = field(default_factory=dict)
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")

    def close(self) -> None:
        """Stop decoding; images that are not decoded yet are dropped."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, samples: Sequence[Sample], numbers: Iterable[Numbers] | None = None, wanted: ViewsToCompute | None = None
    ) -> Iterator[Block]:
        """Yield blocks of features, digests and failures, in the order of the images.

        An image that cannot be read or decoded is a failure of its block and raises nothing.

        Args:
            samples: By number.
            numbers: Which of them, ascending, in arrays of any length; None: all.
            wanted: The views of each image that each backbone computes; None: the plain image only.

        Raises:
            ExtractionError: A feature is not finite.
        """
        pending_numbers = _Numbers([np.arange(len(samples))] if numbers is None else numbers)
        for decoded in self._decode_ahead(samples, pending_numbers, wanted or self._plain):
            rows = [
                tuple(self._check(() if batch is None else backbone.compute(batch), samples))
                for backbone, batch in zip(self.backbones, decoded.batches, strict=True)
            ]
            yield Block(images=decoded.images, digests=decoded.digests, failures=decoded.failures, rows=tuple(rows))
        rows = [tuple(self._check(backbone.finish(), samples)) for backbone in self.backbones]
        if any(rows):
            nothing = np.empty(0, np.int64)
            yield Block(images=nothing, digests=np.empty((0, 32), np.uint8), failures=(), rows=tuple(rows))

    def gather(self, samples: Sequence[Sample], wanted: ViewsToCompute | None = None) -> Gathered:
        """Compute the rows of all samples, and return them in memory, with the digests and failures.

        `wanted`: the views of each image that each backbone computes; None: the plain image only.
        """
        blocks = list(self.run(samples, wanted=wanted))
        return Gathered(
            rows=tuple(
                _concatenate([rows for block in blocks for rows in block.rows[number]])
                for number in range(len(self.backbones))
            ),
            digests={
                number: row.tobytes()
                for block in blocks
                for number, row in zip(block.images.tolist(), block.digests, strict=True)
            },
            failures=tuple(failure for block in blocks for failure in block.failures),
        )

    def decode(self, samples: Sequence[Sample], numbers: Numbers) -> Batch | None:
        """Decode some images, without augmentation, for the first backbone. None where none can be decoded.

        Their bytes are kept in `payloads`, so they are not read again.
        """
        prepared: list[tuple[int, int, Prepared]] = []
        for number in numbers.tolist():
            try:
                payload = self.payloads[number] = self._read(samples[number], number)
                image = decode(payload, samples[number].id)
                prepared.append((number, 0, self.backbones[0].prepare(image, digest(payload), 0)))
            except ImageError:
                # The error is reported when the image is computed.
                continue
        return _batch_of(self.backbones[0], prepared)

    def _plain(self, number: int, digest: bytes) -> Sequence[Sequence[int]]:
        return [(0,)] * len(self.backbones)

    def _check(self, rows: Iterable[Rows], samples: Sequence[Sample]) -> Iterator[Rows]:
        for some in rows:
            require_finite(some, lambda number: samples[number].id)
            yield some

    def _decode_ahead(
        self, samples: Sequence[Sample], pending_numbers: _Numbers, wanted: ViewsToCompute
    ) -> Iterator[_Decoded]:
        pending: deque[Future[_Decoded]] = deque()
        while True:
            while len(pending) <= self.workers:
                # Read each time: the batch size may have been halved in the meantime.
                largest = max(backbone.batch_size for backbone in self.backbones)
                some = pending_numbers.take(max(1, largest // self.rows_per_image))
                if not len(some):
                    break
                pending.append(self._pool.submit(self._decode, samples, some, wanted))
            if not pending:
                return
            began = time.perf_counter()
            decoded = pending.popleft().result()
            waited = (time.perf_counter() - began) / len(self.backbones)
            for backbone in self.backbones:
                backbone.stages.add("decode", waited)
            yield decoded

    def _decode(self, samples: Sequence[Sample], numbers: Numbers, wanted: ViewsToCompute) -> _Decoded:
        read: list[int] = []
        digests: list[bytes] = []
        failures: list[Failure] = []
        prepared: list[list[tuple[int, int, Prepared]]] = [[] for _ in self.backbones]
        for number in numbers.tolist():
            if self._closed.is_set():
                # No result is needed any more, and large images take long.
                break
            found: bytes | None = None
            try:
                sample = samples[number]
                payload = self._read(sample, number)
                found = digest(payload)
                views = wanted(number, found)
                if any(views):
                    image = decode(payload, sample.id)
                    for backbone, own, some in zip(self.backbones, prepared, views, strict=True):
                        own += [(number, view, backbone.prepare(image, found, view)) for view in some]
            except ImageError as error:
                failures.append(Failure(image=number, digest=found, error=error))
                continue
            read.append(number)
            digests.append(found)
        return _Decoded(
            images=np.array(read, np.int64),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            failures=tuple(failures),
            batches=tuple(map(_batch_of, self.backbones, prepared)),
        )

    def _read(self, sample: Sample, number: int) -> Payload:
        kept = self.payloads.pop(number, None)
        return self.source.read(sample) if kept is None else kept


def _concatenate(rows: Sequence[Rows]) -> Rows:
    if not rows:
        return Rows(images=np.empty(0, np.int64), views=np.empty(0, np.int64), features={})
    return Rows(
        images=np.concatenate([some.images for some in rows]),
        views=np.concatenate([some.views for some in rows]),
        features={name: np.concatenate([some.features[name] for some in rows]) for name in rows[0].features},
    )


class _Numbers:
    """Regroups arrays of numbers into arrays of a requested length."""

    def __init__(self, arrays: Iterable[Numbers]) -> None:
        self._arrays = iter(arrays)
        self._buffer: Numbers = np.empty(0, np.int64)

    def take(self, count: int) -> Numbers:
        """The next `count`, or as many as are left."""
        while len(self._buffer) < count and (more := next(self._arrays, None)) is not None:
            self._buffer = np.concatenate([self._buffer, more])
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


def _batch_of(backbone: ForwardPass, prepared: Sequence[tuple[int, int, Any]]) -> Batch | None:
    if not prepared:
        return None
    images, views, pictures = zip(*prepared, strict=True)
    return Batch(
        images=np.array(images, np.int64), views=np.array(views, np.int64), packed=backbone.resizing.pack(pictures)
    )
