"""images + backbone -> cache, in one sentence: resolve, look which rows there are, compute the others, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from featcache.cache.locks import Owner, locked
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheUnwritable
from featcache.extraction.compute import Computed, compute
from featcache.extraction.cut import Cut, cut, deciding
from featcache.extraction.execution import ALL_GPUS
from featcache.extraction.execution import Execution as Execution
from featcache.extraction.inventory import Inventory
from featcache.extraction.publish import publish, relabelled, skipped_in
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import Job, resolve
from featcache.extraction.result import Extraction
from featcache.extraction.units import units_in
from featcache.files import disk_errors


def extract(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Makes sure that the cache `request` describes is there, computing only rows that no other has.

    Raises FeatcacheError; whatever was finished before stands, and the same call goes on from there.
    """
    began = time.monotonic()
    (done,) = extract_each([request], execution, reporter=reporter)
    return replace(done, seconds=time.monotonic() - began)


def extract_each(
    requests: Sequence[Request], execution: Execution | None = None, *, reporter: Reporter | None = None
) -> tuple[Extraction, ...]:
    """The same for several backbones over the same images, which are listed, read, hashed and decoded once.

    Each has a cache, segments and a lock of its own; `seconds` and `images_per_s` count the time spent on it alone.
    Raises InvalidOption where the requests differ in their images, or two ask for the same backbone.
    """
    execution, reporter = execution or Execution(), reporter or LogReporter()
    with disk_errors(requests[0].data_dir):
        if execution.device == ALL_GPUS:
            from featcache.extraction.gpus import extract_on_all_gpus

            return extract_on_all_gpus(requests, execution, reporter)
        with resolve(requests, execution, reporter) as jobs:
            return carry_out(jobs)


def assemble(request: Request, execution: Execution | None = None, *, reporter: Reporter | None = None) -> Extraction:
    """Publishes the cache `request` describes from segments that shards have written; nothing is computed.

    Raises CacheIncomplete where rows are missing, and what `extract` raises.
    """
    with (
        disk_errors(request.data_dir),
        resolve([request], execution or Execution(), reporter or LogReporter()) as jobs,
    ):
        (done,) = carry_out(jobs, assembles=True)
    return done


def carry_out(jobs: Sequence[Job], *, assembles: bool = False, locks: bool = True) -> tuple[Extraction, ...]:
    """Do all of some jobs over the same images, and return their results in the same order.

    Args:
        jobs: As `resolve` gives them.
        assembles: Nothing is computed: what others have computed is published.
        locks: Whether other processes are kept from writing the same caches; False where the caller does.

    Raises:
        CacheBusy: Another process writes one of the caches, and `wait` is off.
        CacheIncomplete: Rows are missing, and nothing is to be computed.
    """
    inventories = [Inventory(job=job) for job in jobs]
    # What is there already needs no lock, and so no folder that can be written.
    done = {one: hit for one in inventories if (hit := _look(one, assembles)) is not None}
    left = [one for one in inventories if one not in done]
    with ExitStack() as held:
        # In a fixed order, to avoid a deadlock.
        for one in sorted(left, key=lambda one: one.name) if locks else ():
            held.enter_context(lock(one))
        done |= _complete(left, assembles)
    return tuple(done[one] for one in inventories)


def lock(inventory: Inventory) -> AbstractContextManager[object]:
    """Keeps others from writing the same cache; raises CacheBusy where that is not waited for."""
    job = inventory.job

    def waiting(owner: Owner | None) -> None:
        writer = owner or "another process"
        job.reporter.say(f"waiting: {writer} is writing this cache (--no-wait stops instead)")

    return locked(
        job.request.features_dir,
        inventory.name,
        shared=job.execution.shard is not None,
        wait=job.execution.wait,
        waiting=waiting,
    )


def _look(inventory: Inventory, assembles: bool) -> Extraction | None:
    """The result where every row is in one complete cache already; nothing is locked or written."""
    with inventory.job.watch:
        found = hit(inventory, inventory.standing(), assembles=assembles)
        if found is None:
            return None
        inventory.discard_leftovers(found)
    return result(inventory, found, Computed())


def hit(inventory: Inventory, standing: FeatureCache | None, *, assembles: bool = False) -> FeatureCache | None:
    """The cache that has every row; None where there is none, or where it is to be packed."""
    found = inventory.hit(standing)
    packs_it = assembles and bool(inventory.job.execution.pack)
    return None if found is not None and packs_it and found.path.is_dir() else found


def _complete(inventories: Sequence[Inventory], assembles: bool) -> dict[Inventory, Extraction]:
    """Compute and publish; the caller holds the locks."""
    done: dict[Inventory, Extraction] = {}
    standing: dict[Inventory, FeatureCache | None] = {}
    cuts: dict[Inventory, Cut | None] = {}
    for one in inventories:
        with one.job.watch:
            standing[one] = one.standing()
            # Another process may have written it meanwhile.
            found = hit(one, standing[one], assembles=assembles)
            if found is None and not assembles:
                found = relabelled(one, standing[one])
            if found is not None:
                done[one] = result(one, found, Computed())
            else:
                cuts[one] = cut(one, standing[one], assembles=assembles)
    computed = dict.fromkeys(cuts, Computed())
    todo = {one: begun for one, begun in cuts.items() if begun is not None and begun.todo}
    try:
        computed |= dict(zip(todo, compute(list(todo.values())) if todo else (), strict=True))
    except CacheUnwritable:
        published = {one: found for one in cuts if (found := hit(one, one.standing())) is not None}
        if len(published) < len(cuts):
            raise
        # The same share ran twice, and the other one has published the cache and removed the segments.
        return done | {one: result(one, found, Computed()) for one, found in published.items()}
    for one, begun in cuts.items():
        with one.job.watch:
            if one.job.execution.shard is not None and begun is not None:
                done[one] = _share(one, begun, computed[one])
            else:
                done[one] = result(one, _publish(one, standing[one], begun), computed[one])
    return done


def _publish(inventory: Inventory, standing: FeatureCache | None, cut: Cut | None) -> FeatureCache:
    manifest, units = (None, []) if cut is None else (cut.manifest, cut.units)
    return publish(inventory, standing=standing, manifest=manifest, units=units)


def _share(inventory: Inventory, cut: Cut, computed: Computed) -> Extraction:
    """The result of a share; of the whole where it was the last."""
    job = inventory.job
    with deciding(inventory):
        standing = inventory.standing()
        if all(inventory.stands(unit, unchanged=False) for unit in cut.units):
            return result(inventory, _publish(inventory, standing, cut), computed)
        if standing is not None and inventory.is_hit(standing):
            # The share that ended last has published it.
            return result(inventory, standing, computed)
    mine = units_in(cut.units, job.execution.shard)
    own = {unit.segment.file for unit in mine}
    written = [split for split in inventory.segments_of(inventory.folder) if split.file.path.name in own]
    skipped = [one for split in written for one in skipped_in(split)]
    return Extraction(
        cache=inventory.folder,
        complete=False,
        fingerprint=job.spec.fingerprint,
        rows=job.images.rows_of_splits,
        feature_dim=_feature_dim(job),
        computed=computed.rows,
        reused=sum(map(len, mine)) - len(skipped) - computed.rows,
        skipped=tuple(skipped),
        seconds=_seconds(job),
        images_per_s=computed.images_per_s,
        shares=job.stages.shares,
        bound=job.stages.bound,
        drift=job.drift,
    )


def result(inventory: Inventory, cache: FeatureCache, computed: Computed) -> Extraction:
    """What is reported of a complete cache."""
    job, rows = inventory.job, {split: len(cache[split]) for split in cache.splits}
    return Extraction(
        cache=job.request.features_dir / cache.path.name,
        complete=True,
        fingerprint=cache.spec.fingerprint,
        rows=rows,
        feature_dim=_feature_dim(job),
        computed=computed.rows,
        reused=max(0, sum(rows.values()) - computed.rows),
        skipped=tuple(cache.skipped),
        seconds=_seconds(job),
        images_per_s=computed.images_per_s,
        shares=job.stages.shares,
        bound=job.stages.bound,
        drift=cache.provenance.get("drift"),
    )


def _feature_dim(job: Job) -> dict[str, int]:
    return {layer.name: layer.feature_dim for layer in job.spec.layers}


def _seconds(job: Job) -> float:
    return job.watch.read() + sum(job.stages.seconds.values())
