"""What an extraction costs, by images, width of a row and workers: arithmetic on constants that were measured.

    seconds = starting + plan + computing + assembling
    plan        images x (listing, stamp and index), by everybody who takes part; what was never met is hashed, once
    computing   parts, shared out whole, at a worker's images per second, or as fast as the store gives and takes
    assembling  images x (tables and names) + parts opened + bytes read, checked, copied and written, by one process

Nothing here measures. A prediction is no better than its constants, and those of a GPU and a store are assumptions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

CHECKSUM_BYTES = 8
DIGEST_BYTES = 32
LABEL_BYTES = 8
# About: JSON, with the versions and the machine that the rows were computed by.
PART_HEADER_BYTES = 800
# About: HDF5's header with the spec and all of the provenance, and the trailer; of every file.
FILE_HEADER_BYTES = 10_000
# Files of a sharded cache, as docs/scale.md advises: all stay open while it is read (cache.sharded.MOST_SHARDS).
MOST_FILES = 512
LEAST_FILE_ROWS = 1_000_000
# Assembling reads a row to check it, reads it again to copy it, and writes it.
_TIMES_THROUGH_STORE = 3


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Measured on one machine. Seconds and bytes of one image or one part; rates in bytes a second.

    `plan_bytes`: memory where images are met for the first time, `known_plan_bytes`: where the index knows all.
    """

    listing_s: float
    hashing_s: float
    row_s: float
    part_s: float
    hashed_bytes_per_s: float
    copied_bytes_per_s: float
    plan_bytes: float
    known_plan_bytes: float
    assembling_bytes: float
    part_bytes: float
    process_bytes: float

    def to_json(self) -> dict[str, float]:
        """All of them as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is extracted: `images` of `image_bytes` bytes, with `values` of `value_bytes` bytes each a row.

    `id_bytes`: those of the longest name. `met`: the images were hashed before, and the index knows them.
    """

    images: int
    image_bytes: int
    values: int
    part_rows: int
    value_bytes: int = 2
    id_bytes: int = 20
    met: bool = False

    @property
    def read_bytes(self) -> int:
        """Of all images, encoded."""
        return self.images * self.image_bytes

    @property
    def feature_bytes(self) -> int:
        """Of all rows, as they are stored."""
        return self.images * self.values * self.value_bytes

    @property
    def parts(self) -> int:
        """How many files the rows lie in until the cache is assembled."""
        return -(-self.images // self.part_rows)

    @property
    def parts_bytes(self) -> int:
        """What the parts take on the disk."""
        return self.feature_bytes + self.images * (CHECKSUM_BYTES + DIGEST_BYTES) + self.parts * PART_HEADER_BYTES

    @property
    def cache_bytes(self) -> int:
        """What the cache takes on the disk."""
        tables = self.images * (CHECKSUM_BYTES + DIGEST_BYTES + LABEL_BYTES + self.id_bytes)
        return self.feature_bytes + tables + self.files * FILE_HEADER_BYTES

    @property
    def files(self) -> int:
        """Files of the cache at a million rows each, or as many rows as keep it at MOST_FILES."""
        rows = max(LEAST_FILE_ROWS, -(-self.images // MOST_FILES))
        return -(-self.images // rows)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who computes: `count` processes, each at `images_per_s` once it has started, which takes `starting_s`.

    `store_bytes_per_s`: what the disk or shared store that all of them use gives and takes, all together.
    """

    count: int
    images_per_s: float
    starting_s: float
    store_bytes_per_s: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it comes to: seconds one after the other, bytes on the disk, memory.

    `store_bound`: whether the store bounds the computing. `driver_bytes`: memory of the process that assembles,
    `worker_bytes`: of each that computes.
    """

    starting_s: float
    plan_s: float
    computing_s: float
    assembling_s: float
    store_bound: bool
    parts: int
    parts_bytes: int
    cache_bytes: int
    files: int
    driver_bytes: float
    worker_bytes: float

    @property
    def seconds(self) -> float:
        """From the command to the finished cache."""
        return self.starting_s + self.plan_s + self.computing_s + self.assembling_s

    @property
    def disk_bytes(self) -> int:
        """At the end of assembling, before the parts go."""
        return self.parts_bytes + self.cache_bytes

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        values = {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return values | {"seconds": round(self.seconds, 2), "disk_bytes": self.disk_bytes}


def cost(work: Work, workers: Workers, constants: Constants) -> Cost:
    """One process that does all, or a driver that plans and assembles and `workers` that each plan and compute."""
    apart = workers.count > 1
    listing_s = work.images * constants.listing_s
    by_rate_s = _computing_s(work, workers)
    by_store_s = (work.read_bytes + work.parts_bytes) / workers.store_bytes_per_s
    planning_bytes = constants.known_plan_bytes if work.met else constants.plan_bytes
    return Cost(
        starting_s=workers.starting_s * (2 if apart else 1),
        # The driver's plan comes first and writes the index, with which every worker makes its own.
        plan_s=listing_s * (2 if apart else 1) + _hashing_s(work, workers, constants),
        computing_s=max(by_rate_s, by_store_s),
        assembling_s=_assembling_s(work, workers, constants),
        store_bound=by_store_s > by_rate_s,
        parts=work.parts,
        parts_bytes=work.parts_bytes,
        cache_bytes=work.cache_bytes,
        files=work.files,
        driver_bytes=constants.process_bytes
        + work.images * max(planning_bytes, constants.assembling_bytes)
        + work.parts * constants.part_bytes,
        worker_bytes=constants.process_bytes + work.images * (constants.known_plan_bytes if apart else planning_bytes),
    )


def _hashing_s(work: Work, workers: Workers, constants: Constants) -> float:
    if work.met:
        return 0.0
    bytes_per_s = min(constants.hashed_bytes_per_s, workers.store_bytes_per_s)
    return work.images * constants.hashing_s + work.read_bytes / bytes_per_s


def _computing_s(work: Work, workers: Workers) -> float:
    # Parts are not divided: the last round may leave some idle.
    each = -(-work.parts // workers.count) * work.part_rows
    return min(each, work.images) / workers.images_per_s


def _assembling_s(work: Work, workers: Workers, constants: Constants) -> float:
    bytes_per_s = min(constants.copied_bytes_per_s, workers.store_bytes_per_s / _TIMES_THROUGH_STORE)
    return work.images * constants.row_s + work.parts * constants.part_s + work.feature_bytes / bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An assumption, not a measurement: a card's published peak, and the share of it that a network reaches.

    `decoded_per_s`: images that one processor core decodes and resizes in a second; `cores` of them feed one card.
    """

    peak_flops: float
    share: float
    cores: int
    decoded_per_s: float

    def computed_per_s(self, flops_per_image: float) -> float:
        """Images the card computes in a second."""
        return self.share * self.peak_flops / flops_per_image

    def images_per_s(self, flops_per_image: float) -> float:
        """What the card computes or its cores decode, whichever is less."""
        return min(self.computed_per_s(flops_per_image), self.cores * self.decoded_per_s)

    def bound(self, flops_per_image: float) -> str:
        """Which of the two it is: "compute" or "decode"."""
        return "decode" if self.images_per_s(flops_per_image) < self.computed_per_s(flops_per_image) else "compute"
