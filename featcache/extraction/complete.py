"""Finish extractions: divide the missing rows into segments, compute them, and publish each cache.

To publish is to pack the segments into one file, or to write the manifest that makes their folder a complete cache. Of
several shards the one that ends last does it. `featcache assemble` only publishes: missing rows are then an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from featcache.cache.reader import FeatureCache
from featcache.errors import CacheUnwritable
from featcache.extraction.compute import compute
from featcache.extraction.cut import Cut, cut, lock_manifest
from featcache.extraction.inventory import Inventory
from featcache.extraction.publish import publish, read_skipped, relabel
from featcache.extraction.result import Computed, Extraction, report_cache, report_share
from featcache.extraction.units import units_in


def complete_caches(inventories: Sequence[Inventory], *, assembles: bool) -> dict[Inventory, Extraction]:
    """Finish extractions: compute the missing rows, and give each cache its final name. The caller holds the locks.

    Of several shards, only the one that ends last gives the cache its name.

    Args:
        inventories: Of extractions over the same images.
        assembles: Compute nothing: give the name to what other processes have computed.

    Returns:
        The result of each extraction.

    Raises:
        CacheIncomplete: Rows are missing, and `assembles` forbids to compute them.
    """
    done: dict[Inventory, Extraction] = {}
    existing: dict[Inventory, FeatureCache | None] = {}
    cuts: dict[Inventory, Cut | None] = {}
    for one in inventories:
        with one.job.watch:
            existing[one] = one.existing_cache()
            # Another process may have written it in the meantime.
            found = one.hit(existing[one], assembles=assembles)
            if found is None and not assembles:
                found = relabel(one, existing[one])
            if found is not None:
                done[one] = report_cache(one.job, found, Computed())
            else:
                cuts[one] = cut(one, existing[one], assembles=assembles)
    computed = dict.fromkeys(cuts, Computed())
    todo = {one: begun for one, begun in cuts.items() if begun is not None and begun.todo}
    try:
        computed |= dict(zip(todo, compute(list(todo.values())) if todo else (), strict=True))
    except CacheUnwritable:
        published = {one: found for one in cuts if (found := one.hit(one.existing_cache())) is not None}
        if len(published) < len(cuts):
            raise
        # The same share ran twice, and the other one has published the cache and removed the segments.
        return done | {one: report_cache(one.job, found, Computed()) for one, found in published.items()}
    for one, begun in cuts.items():
        with one.job.watch:
            if one.job.execution.shard is not None and begun is not None:
                done[one] = _share(one, begun, computed[one])
            else:
                done[one] = report_cache(one.job, _publish(one, existing[one], begun), computed[one])
    return done


def _publish(inventory: Inventory, existing: FeatureCache | None, cut: Cut | None) -> FeatureCache:
    manifest, units = (None, []) if cut is None else (cut.manifest, cut.units)
    return publish(inventory, existing=existing, manifest=manifest, units=units)


def _share(inventory: Inventory, cut: Cut, computed: Computed) -> Extraction:
    """The result of a share. The share that ends last publishes the cache, and reports the whole of it."""
    job = inventory.job
    with lock_manifest(inventory):
        existing = inventory.existing_cache()
        # Without their manifest, the segments were written again, after the cache had been packed.
        begun = inventory.manifest() is not None
        if begun and all(inventory.is_written(unit, unchanged=False) for unit in cut.units):
            return report_cache(inventory.job, _publish(inventory, existing, cut), computed)
        if existing is not None and inventory.is_hit(existing):
            # The share that ended last has published it.
            return report_cache(inventory.job, existing, computed)
    mine = units_in(cut.units, job.execution.shard)
    own = {unit.segment.file for unit in mine}
    written = [split for split in inventory.segments_of(inventory.folder) if split.file.path.name in own]
    skipped = [one for split in written for one in read_skipped(split)]
    return report_share(job, inventory.folder, computed, images=sum(map(len, mine)), skipped=skipped)
