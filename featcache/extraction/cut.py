"""How an extraction is cut into segments: decided by its first process, written into the manifest, obeyed by all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np

from featcache.cache.donors import Donor, Donors, MemoryDonor
from featcache.cache.layout import views_in
from featcache.cache.locks import locked
from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheIncomplete
from featcache.extraction import drift
from featcache.extraction.forward import Batch, Features, Rows, require_finite
from featcache.extraction.images import Numbers
from featcache.extraction.inventory import Inventory
from featcache.extraction.network import drifts, measure_drift, open_forward
from featcache.extraction.pipeline import Pipeline
from featcache.extraction.publish import begin, packs
from featcache.extraction.resolve import Job
from featcache.extraction.units import Unit, assumed_speed, segment_rows_for, units_in, units_of
from featcache.images.source import digest

# The speed is measured before segments are cut where so many batches have to be computed; one of them is measured.
_BATCHES_WORTH_MEASURING = 8
_LOOKED_UP_AT_ONCE = 256


@dataclass(kw_only=True, eq=False)
class Cut:
    """The images whose rows go into segments, cut into units.

    Args:
        inventory: Of the extraction.
        units: All of them.
        manifest: Names their segments.
        todo: Those of this process whose segment does not stand yet.
        donors: What has rows already.
    """

    inventory: Inventory
    units: list[Unit]
    manifest: Manifest
    todo: list[Unit]
    donors: list[Donor]


def deciding(inventory: Inventory) -> AbstractContextManager[object]:
    """One process at a time begins or publishes an extraction that several compute."""
    return locked(inventory.features_dir, f"{inventory.name}.manifest")


def cut(inventory: Inventory, standing: FeatureCache | None, *, assembles: bool = False) -> Cut | None:
    """The units of the images whose rows go into segments; None where a packed cache has all of them.

    Args:
        inventory: Of the extraction.
        standing: The complete cache under its name.
        assembles: Nothing is begun and nothing will be computed.

    Raises:
        CacheIncomplete: Segments are missing, and nothing is to be computed.
    """
    images = _images_for_segments(inventory, standing)
    if not len(images):
        return None
    job, donors = inventory.job, inventory.donors(standing)
    with deciding(inventory):
        before = inventory.manifest()
        speed = None if before is not None or assembles else _try_out(inventory, images, donors)
        segment_rows = _segment_rows(inventory, images, before, speed)
        units = units_of(images, job.images.rows_of_splits, segment_rows=segment_rows)
        mine = units_in(units, job.execution.shard)
        if assembles:
            todo = [unit for unit in units if not inventory.stands(unit, unchanged=False)]
            if todo:
                raise _incomplete(len(job.images), units, todo)
        else:
            todo = [unit for unit in mine if not inventory.stands(unit)]
        manifest = begin(inventory, [unit.segment for unit in units], segment_rows)
    return Cut(inventory=inventory, units=units, manifest=manifest, todo=todo, donors=donors)


def cut_alike(inventory: Inventory) -> Cut:
    """The same for a worker of an extraction that was begun by another process; nothing is written."""
    standing, manifest = inventory.standing(), inventory.manifest()
    images, donors = _images_for_segments(inventory, standing), inventory.donors(standing)
    if manifest is None:
        raise CacheIncomplete(f"{inventory.folder} has no manifest: the extraction was not begun here")
    units = units_of(images, inventory.job.images.rows_of_splits, segment_rows=manifest.segment_rows)
    return Cut(inventory=inventory, units=units, manifest=manifest, todo=units, donors=donors)


def computes(inventory: Inventory, units: Sequence[Unit], donors: Sequence[Donor]) -> bool:
    """Whether any image of these units is nowhere. Images are read until one is found that is."""
    if not donors:
        return bool(units)
    images, found = inventory.job.images, Donors(donors, inventory.warn)
    for unit in units:
        for numbers in _parts(unit.images):
            images.read_unknown(numbers)
            for view in range(views_in(inventory.job.spec, unit.segment.split)):
                located = found.locate(images.digests[numbers], inventory.job.spec.layer_names, view)
                if (located.donor < 0).any():
                    return True
    return False


def _parts(numbers: Numbers) -> Iterator[Numbers]:
    for start in range(0, len(numbers), _LOOKED_UP_AT_ONCE):
        yield numbers[start : start + _LOOKED_UP_AT_ONCE]


def _images_for_segments(inventory: Inventory, standing: FeatureCache | None) -> Numbers:
    """All images; beside a packed cache that is packed again, only those that it has not."""
    job = inventory.job
    if standing is None or not packs(job) or standing.path != inventory.packed_path:
        return job.images.numbers
    return inventory.missing(inventory.rows_of(standing))


def _segment_rows(inventory: Inventory, images: Numbers, before: Manifest | None, speed: float | None) -> int:
    """How many rows a segment has: as asked, as the extraction was begun, else by the speed, in images/s."""
    job = inventory.job
    if job.execution.segment_rows is not None:
        return job.execution.segment_rows
    if before is not None:
        return before.segment_rows
    return segment_rows_for(speed or assumed_speed(job.backbone.flops_per_image), len(images))


def _incomplete(rows: int, units: Sequence[Unit], todo: Sequence[Unit]) -> CacheIncomplete:
    missing = sum(map(len, todo))
    return CacheIncomplete(
        f"{missing:,} of {rows:,} rows are missing, in {len(todo):,} of {len(units):,} segments",
        hint="run the shards that have not ended, or `featcache extract` with the same options",
    )


# --- before anything is begun ------------------------------------------------------------------------------


def _try_out(inventory: Inventory, images: Numbers, donors: list[Donor]) -> float | None:
    """Compute some images: what the precision costs, and images/s where many are to be computed.

    Their rows are kept among the donors. None where the speed was not measured.
    """
    job = inventory.job
    whole = units_of(images, job.images.rows_of_splits, segment_rows=len(images))
    if job.backbone.stores_bytes or not computes(inventory, whole, donors):
        return None
    forward = open_forward(job)
    many = len(images) >= _BATCHES_WORTH_MEASURING * forward.batch_size
    chosen = drift.sample_of(len(images)) if drifts(job, forward) else np.empty(0, np.int64)
    if many:
        spread = np.linspace(0, len(images) - 1, forward.batch_size).astype(np.int64)
        # Those that the drift is measured on come first.
        chosen = np.concatenate([chosen, np.setdiff1d(spread, chosen)])[: max(len(chosen), forward.batch_size)]
    # Before they are read: an image that is changed meanwhile must not be remembered with its new stamp.
    job.images.look_up(images[chosen])
    with closing(Pipeline(source=job.source, backbones=[forward], workers=1, payloads=job.images.payloads)) as pipeline:
        began = time.perf_counter()
        batch = pipeline.decode(job.images.samples, images[chosen])
        decoding_s = time.perf_counter() - began
    if batch is None:
        return None
    began = time.perf_counter()
    exact = forward.features(batch.packed, "float32")
    computing_s = time.perf_counter() - began
    if drifts(job, forward):
        measure_drift(job, forward, batch.packed, exact)
    donors.append(_kept(job, batch, exact))
    return len(batch) / max(decoding_s / job.computer.workers, computing_s, 1e-6) if many else None


def _kept(job: Job, batch: Batch, features: Features) -> Donor:
    """Rows that were computed in float32, as they are stored."""
    stored = {layer: rows.astype(job.spec.dtype) for layer, rows in features.items()}
    rows = Rows(images=batch.images, views=batch.views, features=stored)
    require_finite(rows, lambda number: job.images.samples[number].id)
    digests = b"".join(digest(job.images.payloads[number]) for number in batch.images.tolist())
    job.images.learn(batch.images, np.frombuffer(digests, np.uint8).reshape(-1, 32))
    if job.spec.views == 1:
        # They are not decoded again.
        for number in batch.images.tolist():
            del job.images.payloads[number]
    found = job.images.digests[batch.images]
    return MemoryDonor(fingerprint=job.spec.fingerprint, digests=found, features=stored)
