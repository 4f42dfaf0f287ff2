"""Which rows a cache will hold, in which order, and the spec they are computed under."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.spec import BackboneSpec
from featcache.cache.checksums import row_digests, view_digests
from featcache.cache.spec import LayerSpec, Spec
from featcache.cache.tables import SplitTable
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.index import index_path, keys_of, look_up, save
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.images.decoding import DECODER
from featcache.images.samples import SampleIds, SampleRows, Samples
from featcache.images.selection import select
from featcache.images.sources import SPLITS, ImageSource, Sample, digest

_CHUNK = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRows:
    """Some rows of a plan: the sample behind each, the digest of its image and the row's own, (n, 32) uint8 each.

    `views` (n,): which view of its image each row is; 0 is the plain one.
    """

    samples: SampleRows
    images: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]
    views: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> PlannedRows:
        """Some of them, in that order."""
        return PlannedRows(
            samples=self.samples.take(rows),
            images=self.images[rows],
            digests=self.digests[rows],
            views=self.views[rows],
        )

    def table(self, rows: slice) -> SplitTable:
        """Some of them, all of one split, as a segment stores them: without targets."""
        (samples,) = self.samples.take(rows).by_split().values()
        return SplitTable(ids=SampleIds(samples), digests=self.digests[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The samples of each split in the order of their rows, and the SHA-256 of their bytes, (n, 32) uint8.

    A train image has `views` rows, one after the other, every other image one. `unreadable`: samples that could not
    even be read, with the reason; they have no row.
    """

    samples: dict[str, Samples]
    digests: dict[str, npt.NDArray[np.uint8]]
    unreadable: tuple[tuple[Sample, str], ...] = ()
    views: int = 1

    @property
    def rows(self) -> int:
        return sum(self.rows_of_splits.values())

    @property
    def rows_of_splits(self) -> dict[str, int]:
        """How many rows each split has."""
        return {split: len(samples) * self.views_in(split) for split, samples in self.samples.items()}

    def views_in(self, split: str) -> int:
        """How many rows an image of this split has."""
        return self.views if split == "train" else 1

    def all_samples(self) -> SampleRows:
        """The sample behind each row, over all splits."""
        repeats = [np.full(len(samples), self.views_in(split)) for split, samples in self.samples.items()]
        rows = SampleRows(list(self.samples.values()))
        return rows if self.views == 1 else rows.take(np.repeat(np.arange(len(rows)), np.concatenate(repeats)))

    def at(self, rows: npt.NDArray[np.int64]) -> PlannedRows:
        """These rows (n,), in that order. What it costs does not grow with the plan."""
        bounds = np.cumsum([0, *self.rows_of_splits.values()])
        listed = np.cumsum([0, *map(len, self.samples.values())])
        each = np.array([self.views_in(split) for split in self.samples], np.int64)
        holder = np.searchsorted(bounds, rows, side="right") - 1
        image, view = np.divmod(rows - bounds[holder], each[holder])
        images = np.empty((len(rows), 32), np.uint8)
        for number, digests in enumerate(self.digests.values()):
            mine = holder == number
            images[mine] = digests[image[mine]]
        samples = SampleRows(list(self.samples.values()), listed[holder] + image)
        return PlannedRows(samples=samples, images=images, digests=view_digests(images, view), views=view)

    def row_digests(self) -> dict[str, npt.NDArray[np.uint8]]:
        """What tells the rows of each split apart, image and view together: (n, 32)."""
        return {split: row_digests(digests, self.views_in(split)) for split, digests in self.digests.items()}


def selected(source: ImageSource, request: Request) -> dict[str, Samples]:
    """The samples that the request's splits and limit leave, by split; raises where there are none."""
    present = source.splits()
    for split in request.splits or ():
        if split not in present:
            raise InvalidOption(
                f"{request.origin} has no split {split}: it has {', '.join(present)}", hint="leave --split out"
            )
    wanted = [split for split in SPLITS if split in present and split in (request.splits or present)]
    if request.views > 1 and "train" not in wanted:
        raise InvalidOption(
            f"only train images have views, and {request.origin} has {', '.join(wanted)}", hint="leave --views out"
        )
    chosen = {
        split: Samples.of(split, select(source.samples(split), request.limit, request.select_seed)) for split in wanted
    }
    return {split: samples for split, samples in chosen.items() if samples}


def plan_rows(
    source: ImageSource,
    request: Request,
    *,
    workers: int,
    skip_unreadable: bool,
    rehash: bool,
    reporter: Reporter,
) -> Plan:
    """The digest of every selected image: from the index where the image is unchanged, else read and hashed.

    `rehash` reads all. Raises SourceError where an image cannot be read or none is left.
    """
    chosen = selected(source, request)
    samples = SampleRows(list(chosen.values()))
    where = index_path(request.data_dir, request.origin)
    known, digests = _known(source, samples, None if rehash else where)
    lost: tuple[tuple[Sample, str], ...] = ()
    unreadable = _read(source, samples, digests, ~known, workers, skip_unreadable, reporter)
    if unreadable:
        # Only then: of ten million images a copy is 400 MB.
        kept = np.delete(np.arange(len(samples)), list(unreadable))
        lost = tuple((samples[row], reason) for row, reason in unreadable.items())
        samples, digests = samples.take(kept), digests[kept]
    if not len(samples):
        raise SourceError(f"no image of {request.origin} is left to extract")
    if not known.all():
        save(where, source, samples, digests, time.time_ns())
    return _by_split(samples, digests, lost, request.views)


def _read(
    source: ImageSource,
    samples: SampleRows,
    digests: npt.NDArray[np.uint8],
    unknown: npt.NDArray[np.bool_],
    workers: int,
    skip: bool,
    reporter: Reporter,
) -> dict[int, str]:
    """Fills the unknown digests; the rows whose images cannot be read, with the reason. Raises it unless `skip`."""
    unread = np.flatnonzero(unknown)
    unreadable: dict[int, str] = {}
    hashes = _hashed(source, samples.take(unread), workers)
    for done, (row, hashed) in enumerate(zip(unread, hashes, strict=True), start=1):
        if done % _CHUNK == 0 or done == len(unread):
            reporter.advance("reading", done, len(unread))
        if isinstance(hashed, bytes):
            digests[row] = np.frombuffer(hashed, np.uint8)
        elif skip:
            unreadable[int(row)] = hashed.message
        else:
            raise hashed
    return unreadable


def _known(
    source: ImageSource, samples: SampleRows, index: Path | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    if index is None:
        return np.zeros(len(samples), np.bool_), np.zeros((len(samples), 32), np.uint8)
    keys, stamped = keys_of(source, samples)
    known, digests = look_up(index, keys)
    return known & stamped, digests


def _by_split(
    samples: SampleRows,
    digests: npt.NDArray[np.uint8],
    unreadable: tuple[tuple[Sample, str], ...],
    views: int,
) -> Plan:
    by_split = samples.by_split()
    # The samples stand split by split.
    ends = np.cumsum([len(some) for some in by_split.values()])
    return Plan(
        samples=by_split,
        digests=dict(zip(by_split, np.split(digests, ends[:-1]), strict=True)),
        unreadable=unreadable,
        views=views,
    )


def _hashed(source: ImageSource, samples: Sequence[Sample], workers: int) -> Iterator[bytes | SourceError]:
    stopped = threading.Event()

    def hash_chunk(start: int) -> list[bytes | SourceError]:
        rows = range(start, min(start + _CHUNK, len(samples)))
        # Whoever stops does not wait for the rest of a chunk of large images.
        return [_hash(source, samples[row]) for row in rows if not stopped.is_set()]

    pending: deque[Future[list[bytes | SourceError]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            # Not `pool.map`: it would hold all chunks at once.
            for start in range(0, len(samples), _CHUNK):
                pending.append(pool.submit(hash_chunk, start))
                if len(pending) > workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _hash(source: ImageSource, sample: Sample) -> bytes | SourceError:
    try:
        return digest(source.read(sample))
    except SourceError as error:
        return error


def spec_of(backbone: BackboneSpec, request: Request, precision: str, runner: str) -> Spec:
    """The spec of the rows that a request means: `precision` and `runner` are what it leaves to auto."""
    if backbone.stores_bytes and request.dtype is not None:
        raise InvalidOption(f"{backbone.name} stores uint8: --dtype does not apply", hint="leave --dtype out")
    augmentation = described_augmentation(request)
    stored = "uint8" if backbone.stores_bytes else request.dtype or "float16"
    return Spec(
        backbone=backbone.name,
        layers=tuple(
            LayerSpec(name=layer.name, weights=layer.weights, shape=layer.shape, pool=layer.pooling.name)
            for layer in backbone.layers
        ),
        transform=backbone.transform.described() | ({"augmentation": augmentation} if augmentation else {}),
        decoder=DECODER,
        precision="uint8" if backbone.stores_bytes else precision,
        runner="eager" if backbone.stores_bytes else runner,
        dtype=stored,
        views=request.views,
        view_seed=request.spec_view_seed,
        architecture=backbone.arguments,
    )


def described_augmentation(request: Request) -> dict[str, Any] | None:
    """What the spec says of the views that are asked for; None where there is but the plain one."""
    if request.views == 1:
        return None
    return (Augmentation() if request.view_flip else Augmentation(flip=0.0)).described()


def augmentation_of(spec: Spec) -> Augmentation:
    """How the views of such a spec are made. Raises InvalidOption where another version of featcache made them."""
    described = spec.transform.get("augmentation", {})
    if not isinstance(described, Mapping):
        raise InvalidOption(f"expected the numbers of an augmentation in the spec, got {described!r}")
    return Augmentation.of(described)
