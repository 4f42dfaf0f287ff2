"""Which rows a cache will hold, in which order, and the spec they are computed under."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.backbones.backbone import Backbone
from featcache.cache.spec import LayerSpec, Spec
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.images.decoding import DECODER
from featcache.images.selection import select
from featcache.images.sources import SPLITS, ImageSource, Sample, digest

_CHUNK = 256
# What losing one part costs: half a minute on a machine that computes 60 GFLOP a second.
_PART_FLOPS = 30 * 60e9
_PART_ROWS = (64, 8192)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The samples of each split in the order of their rows, and the SHA-256 of their bytes, (n, 32) uint8.

    `unreadable`: samples that could not even be read, with the reason; they have no row.
    """

    samples: dict[str, tuple[Sample, ...]]
    digests: dict[str, npt.NDArray[np.uint8]]
    unreadable: tuple[tuple[Sample, str], ...] = ()

    @property
    def rows(self) -> int:
        return sum(len(samples) for samples in self.samples.values())

    def all_samples(self) -> list[Sample]:
        """The samples of all splits, in the order of the rows."""
        return [sample for samples in self.samples.values() for sample in samples]

    def all_digests(self) -> npt.NDArray[np.uint8]:
        """(rows, 32): the digests of all splits, in the order of the rows."""
        return np.concatenate([np.empty((0, 32), np.uint8), *self.digests.values()])


def selected(source: ImageSource, request: Request) -> dict[str, list[Sample]]:
    """The samples that the request's splits and limit leave, by split; raises where there are none."""
    present = source.splits()
    for split in request.splits or ():
        if split not in present:
            raise InvalidOption(
                f"{request.origin} has no split {split}: it has {', '.join(present)}", hint="leave --split out"
            )
    wanted = [split for split in SPLITS if split in present and split in (request.splits or present)]
    chosen = {split: select(source.samples(split), request.limit, request.select_seed) for split in wanted}
    return {split: samples for split, samples in chosen.items() if samples}


def plan_rows(
    source: ImageSource, request: Request, *, workers: int, skip_unreadable: bool, reporter: Reporter
) -> Plan:
    """Reads and hashes every selected image. Raises SourceError where none is left."""
    chosen = selected(source, request)
    read: dict[str, list[tuple[Sample, bytes]]] = {split: [] for split in chosen}
    unreadable: list[tuple[Sample, str]] = []
    everything = [sample for samples in chosen.values() for sample in samples]
    for done, (sample, hashed) in enumerate(_hashed(source, everything, workers), start=1):
        if done % _CHUNK == 0 or done == len(everything):
            reporter.advance("reading", done, len(everything))
        if isinstance(hashed, bytes):
            read[sample.split].append((sample, hashed))
        elif skip_unreadable:
            unreadable.append((sample, hashed.message))
        else:
            raise hashed
    if not any(read.values()):
        raise SourceError(f"no image of {request.origin} is left to extract")
    return Plan(
        samples={split: tuple(sample for sample, _ in rows) for split, rows in read.items() if rows},
        digests={
            split: np.frombuffer(b"".join(d for _, d in rows), np.uint8).reshape(-1, 32)
            for split, rows in read.items()
            if rows
        },
        unreadable=tuple(unreadable),
    )


def _hashed(
    source: ImageSource, samples: Sequence[Sample], workers: int
) -> Iterator[tuple[Sample, bytes | SourceError]]:
    def hash_chunk(chunk: tuple[Sample, ...]) -> list[bytes | SourceError]:
        return [_hash(source, sample) for sample in chunk]

    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        chunks = list(_chunks(samples))
        try:
            for chunk, hashes in zip(chunks, pool.map(hash_chunk, chunks), strict=True):
                yield from zip(chunk, hashes, strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chunks(samples: Sequence[Sample]) -> Iterator[tuple[Sample, ...]]:
    for start in range(0, len(samples), _CHUNK):
        yield tuple(samples[start : start + _CHUNK])


def _hash(source: ImageSource, sample: Sample) -> bytes | SourceError:
    try:
        return digest(source.read(sample))
    except SourceError as error:
        return error


def spec_of(backbone: Backbone, request: Request, precision: str) -> Spec:
    """Everything that determines a feature, with nothing left to `auto`."""
    stored = "uint8" if backbone.stores_bytes else request.dtype or "float16"
    if backbone.stores_bytes and request.dtype is not None:
        raise InvalidOption(f"{backbone.name} stores uint8: --dtype does not apply", hint="leave --dtype out")
    digests = backbone.weights.digests if backbone.weights else {}
    return Spec(
        backbone=backbone.name,
        layers=tuple(
            LayerSpec(name=layer.name, weights=digests.get(layer.name), shape=layer.shape) for layer in backbone.layers
        ),
        pool=backbone.pool,
        transform=backbone.transform.described(),
        decoder=DECODER,
        precision="uint8" if backbone.stores_bytes else precision,
        runner="eager",
        dtype=stored,
    )


def part_rows_for(backbone: Backbone) -> int:
    """How many rows a part holds: a power of two, a function of the backbone alone, never of the machine."""
    least, most = _PART_ROWS
    affordable = _PART_FLOPS / max(backbone.flops_per_image, 1)
    return int(min(most, max(least, 2 ** int(np.log2(affordable)))))
