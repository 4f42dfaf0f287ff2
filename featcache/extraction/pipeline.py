"""Images in, rows of features out: reading and decoding run ahead in threads while backbones compute.

An image is read once and decoded once, however many backbones and views need it, and its digest is that of the very
bytes that are decoded. Pillow releases the interpreter while it decodes and resizes, so threads are enough and nothing
is copied between processes.
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

#: Of an image, by its number and digest: for each backbone the views that are still to be computed.
Wanted = Callable[[int, bytes], Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One image that could not be read or decoded.

    Args:
        image: Its number.
        digest: SHA-256 of its bytes; None where they could not be read.
        error: Says why.
    """

    image: int
    digest: bytes | None
    error: ImageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """What came of some images.

    Args:
        images: Numbers of those that were read, and decoded where they were wanted: (n,), ascending.
        digests: SHA-256 of their bytes: uint8 (n, 32).
        failures: Of those that could not be.
        rows: For each backbone the rows that are ready; they may be of images that were read before.
    """

    images: Numbers
    digests: npt.NDArray[np.uint8]
    failures: tuple[Failure, ...]
    rows: tuple[tuple[Rows, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gathered:
    """What came of some images, all of them at once.

    Args:
        rows: One for each backbone, over the same images.
        digests: SHA-256 of the bytes of the images that were read, by number.
        failures: Of those that could not be.
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
    """Reads, digests and decodes images, and computes rows of them by one or several backbones.

    Args:
        source: Where images are read.
        backbones: What computes.
        workers: Threads that read and decode.
        rows_per_image: How many views of an image there are: so many fewer images are decoded at a time.
        payloads: Images by number that have been read already; they are taken out.
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
        """Stop decoding; what has not been started, and the rest of what has, is dropped."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, samples: Sequence[Sample], numbers: Iterable[Numbers] | None = None, wanted: Wanted | None = None
    ) -> Iterator[Block]:
        """Rows of images, block by block, in order.

        Args:
            samples: By number.
            numbers: Which of them, ascending, some at a time; None: all.
            wanted: Which views of an image each backbone computes; None: the plain one.

        Raises:
            ExtractionError: A feature is not finite.
        """
        coming = _Numbers([np.arange(len(samples))] if numbers is None else numbers)
        for decoded in self._decoded(samples, coming, wanted or self._plain):
            rows = [
                tuple(self._checked(() if batch is None else backbone.compute(batch), samples))
                for backbone, batch in zip(self.backbones, decoded.batches, strict=True)
            ]
            yield Block(images=decoded.images, digests=decoded.digests, failures=decoded.failures, rows=tuple(rows))
        rows = [tuple(self._checked(backbone.finish(), samples)) for backbone in self.backbones]
        if any(rows):
            nothing = np.empty(0, np.int64)
            yield Block(images=nothing, digests=np.empty((0, 32), np.uint8), failures=(), rows=tuple(rows))

    def gather(self, samples: Sequence[Sample], wanted: Wanted | None = None) -> Gathered:
        """Rows of images, all at once, as `run` gives them."""
        blocks = list(self.run(samples, wanted=wanted))
        return Gathered(
            rows=tuple(
                _joined([rows for block in blocks for rows in block.rows[number]])
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
        """Those of some images that can be decoded, plain, for the first backbone; None where none can. They are kept.

        So reading them again costs nothing.
        """
        prepared: list[tuple[int, int, Prepared]] = []
        for number in numbers.tolist():
            try:
                payload = self.payloads[number] = self._read(samples[number], number)
                image = decode(payload, samples[number].id)
                prepared.append((number, 0, self.backbones[0].prepared(image, digest(payload), 0)))
            except ImageError:
                # It is reported when it is computed.
                continue
        return _packed(self.backbones[0], prepared)

    def _plain(self, number: int, digest: bytes) -> Sequence[Sequence[int]]:
        return [(0,)] * len(self.backbones)

    def _checked(self, rows: Iterable[Rows], samples: Sequence[Sample]) -> Iterator[Rows]:
        for some in rows:
            require_finite(some, lambda number: samples[number].id)
            yield some

    def _decoded(self, samples: Sequence[Sample], coming: _Numbers, wanted: Wanted) -> Iterator[_Decoded]:
        pending: deque[Future[_Decoded]] = deque()
        while True:
            while len(pending) <= self.workers:
                # The size is read anew: it may have been halved meanwhile.
                largest = max(backbone.batch_size for backbone in self.backbones)
                some = coming.take(max(1, largest // self.rows_per_image))
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

    def _decode(self, samples: Sequence[Sample], numbers: Numbers, wanted: Wanted) -> _Decoded:
        read: list[int] = []
        digests: list[bytes] = []
        failures: list[Failure] = []
        prepared: list[list[tuple[int, int, Prepared]]] = [[] for _ in self.backbones]
        for number in numbers.tolist():
            if self._closed.is_set():
                # No result is waited for any more, and large images take their time.
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
                        own += [(number, view, backbone.prepared(image, found, view)) for view in some]
            except ImageError as error:
                failures.append(Failure(image=number, digest=found, error=error))
                continue
            read.append(number)
            digests.append(found)
        return _Decoded(
            images=np.array(read, np.int64),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
            failures=tuple(failures),
            batches=tuple(map(_packed, self.backbones, prepared)),
        )

    def _read(self, sample: Sample, number: int) -> Payload:
        kept = self.payloads.pop(number, None)
        return self.source.read(sample) if kept is None else kept


def _joined(rows: Sequence[Rows]) -> Rows:
    if not rows:
        return Rows(images=np.empty(0, np.int64), views=np.empty(0, np.int64), features={})
    return Rows(
        images=np.concatenate([some.images for some in rows]),
        views=np.concatenate([some.views for some in rows]),
        features={name: np.concatenate([some.features[name] for some in rows]) for name in rows[0].features},
    )


class _Numbers:
    """Numbers that come some at a time, taken as many at a time as are wanted."""

    def __init__(self, coming: Iterable[Numbers]) -> None:
        self._coming = iter(coming)
        self._here: Numbers = np.empty(0, np.int64)

    def take(self, count: int) -> Numbers:
        """The next `count`, or as many as are left."""
        while len(self._here) < count and (more := next(self._coming, None)) is not None:
            self._here = np.concatenate([self._here, more])
        taken, self._here = self._here[:count], self._here[count:]
        return taken


def _packed(backbone: ForwardPass, prepared: Sequence[tuple[int, int, Any]]) -> Batch | None:
    if not prepared:
        return None
    images, views, pictures = zip(*prepared, strict=True)
    return Batch(
        images=np.array(images, np.int64), views=np.array(views, np.int64), packed=backbone.resizing.packed(pictures)
    )
