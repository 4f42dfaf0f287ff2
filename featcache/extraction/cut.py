"""How an extraction is cut into segments. The first process decides and writes the manifest; all others read it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np

from featcache.cache.donors import Donor, Donors, MemoryDonor
from featcache.cache.layout import views_in
from featcache.cache.locks import lock_cache
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
from featcache.extraction.units import Unit, default_speed, segment_rows_for, units_in, units_of
from featcache.images.source import digest

# Where at least this many batches have to be computed, the speed is measured on one of them before segments are cut.
_BATCHES_WORTH_MEASURING = 8
_LOOKED_UP_AT_ONCE = 256


@dataclass(kw_only=True, eq=False)
class Cut:
    """The images whose rows go into segments, cut into units.

    Args:
        inventory: Of the extraction.
        units: All of them.
        manifest: Names their segments.
        todo: Those of this process whose segment is not written yet.
        donors: Caches and segments whose rows can be reused.
    """

    inventory: Inventory
    units: list[Unit]
    manifest: Manifest
    todo: list[Unit]
    donors: list[Donor]


def lock_manifest(inventory: Inventory) -> AbstractContextManager[object]:
    """A lock: of several processes that compute an extraction, one at a time begins or publishes it."""
    return lock_cache(inventory.features_dir, f"{inventory.name}.manifest")


def cut(inventory: Inventory, existing: FeatureCache | None, *, assembles: bool = False) -> Cut | None:
    """The units of the images whose rows go into segments; None where a packed cache has all of them.

    Args:
        inventory: Of the extraction.
        existing: The complete cache under its name.
        assembles: Nothing will be computed.

    Raises:
        CacheIncomplete: Segments are missing, and `assembles` forbids to compute them.
    """
    images = _images_for_segments(inventory, existing)
    if not len(images):
        return None
    job, donors = inventory.job, inventory.donors(existing)
    with lock_manifest(inventory):
        before = inventory.manifest()
        speed = None if before is not None or assembles else _try_out(inventory, images, donors)
        segment_rows = _segment_rows(inventory, images, before, speed)
        units = units_of(images, job.images.rows_of_splits, segment_rows=segment_rows)
        mine = units_in(units, job.execution.shard)
        if assembles:
            todo = [unit for unit in units if not inventory.is_written(unit, unchanged=False)]
            if todo:
                raise _incomplete(len(job.images), units, todo)
        else:
            todo = [unit for unit in mine if not inventory.is_written(unit)]
        manifest = begin(inventory, [unit.segment for unit in units], segment_rows)
    return Cut(inventory=inventory, units=units, manifest=manifest, todo=todo, donors=donors)


def cut_from_manifest(inventory: Inventory) -> Cut:
    """The same for a worker of an extraction that was begun by another process; nothing is written."""
    existing, manifest = inventory.existing_cache(), inventory.manifest()
    images, donors = _images_for_segments(inventory, existing), inventory.donors(existing)
    if manifest is None:
        raise CacheIncomplete(f"{inventory.folder} has no manifest: the extraction was not begun here")
    units = units_of(images, inventory.job.images.rows_of_splits, segment_rows=manifest.segment_rows)
    return Cut(inventory=inventory, units=units, manifest=manifest, todo=units, donors=donors)


def computes(inventory: Inventory, units: Sequence[Unit], donors: Sequence[Donor]) -> bool:
    """Whether any image of these units has to be computed. Images are read until such an image is found."""
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


def _images_for_segments(inventory: Inventory, existing: FeatureCache | None) -> Numbers:
    """All images; where a packed cache exists and is packed again, only the images that it lacks."""
    job = inventory.job
    if existing is None or not packs(job) or existing.path != inventory.packed_path:
        return job.images.numbers
    return inventory.missing(inventory.rows_of(existing))


def _segment_rows(inventory: Inventory, images: Numbers, before: Manifest | None, speed: float | None) -> int:
    """Rows of a segment: as requested, as in the manifest `before`, else by the speed, in images/s."""
    job = inventory.job
    if job.execution.segment_rows is not None:
        return job.execution.segment_rows
    if before is not None:
        return before.segment_rows
    return segment_rows_for(speed or default_speed(job.backbone.flops_per_image), len(images))


def _incomplete(rows: int, units: Sequence[Unit], todo: Sequence[Unit]) -> CacheIncomplete:
    missing = sum(map(len, todo))
    return CacheIncomplete(
        f"{missing:,} of {rows:,} rows are missing, in {len(todo):,} of {len(units):,} segments",
        hint="run the shards that are not finished, or `featcache extract` with the same options",
    )


# --- measurements before the segments are cut --------------------------------------------------------------


def _try_out(inventory: Inventory, images: Numbers, donors: list[Donor]) -> float | None:
    """Compute some images to measure the error of the precision, and the speed where many images are missing.

    Their rows are added to `donors`, so they are not computed again.

    Returns:
        Images/s; None where the speed was not measured.
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
        # The images that the drift is measured on come first.
        chosen = np.concatenate([chosen, np.setdiff1d(spread, chosen)])[: max(len(chosen), forward.batch_size)]
    # Stamps are taken before images are read: an image that changes meanwhile must not get its new stamp in the index.
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
    donors.append(_donor_of(job, batch, exact))
    return len(batch) / max(decoding_s / job.computer.workers, computing_s, 1e-6) if many else None


def _donor_of(job: Job, batch: Batch, features: Features) -> Donor:
    """A donor of rows that were computed in float32, converted to the storage type."""
    stored = {layer: rows.astype(job.spec.dtype) for layer, rows in features.items()}
    rows = Rows(images=batch.images, views=batch.views, features=stored)
    require_finite(rows, lambda number: job.images.samples[number].id)
    digests = b"".join(digest(job.images.payloads[number]) for number in batch.images.tolist())
    job.images.learn(batch.images, np.frombuffer(digests, np.uint8).reshape(-1, 32))
    if job.spec.views == 1:
        # These images are not decoded again, so their bytes are not needed.
        for number in batch.images.tolist():
            del job.images.payloads[number]
    found = job.images.digests[batch.images]
    return MemoryDonor(fingerprint=job.spec.fingerprint, digests=found, features=stored)
