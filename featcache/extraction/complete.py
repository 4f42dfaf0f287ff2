"""From what is missing of some extractions to complete caches: cut, compute, publish."""

from __future__ import annotations

from collections.abc import Sequence

from featcache.cache.reader import FeatureCache
from featcache.errors import CacheUnwritable
from featcache.extraction.compute import compute
from featcache.extraction.cut import Cut, cut, deciding
from featcache.extraction.inventory import Inventory
from featcache.extraction.publish import publish, relabelled, skipped_in
from featcache.extraction.result import Computed, Extraction, report_cache, report_share
from featcache.extraction.units import units_in


def complete(inventories: Sequence[Inventory], *, assembles: bool) -> dict[Inventory, Extraction]:
    """Compute and publish what is missing, and return the results; the caller holds the locks.

    Args:
        inventories: Of extractions over the same images.
        assembles: Nothing is computed: what others have computed is published.

    Raises:
        CacheIncomplete: Rows are missing, and nothing is to be computed.
    """
    done: dict[Inventory, Extraction] = {}
    standing: dict[Inventory, FeatureCache | None] = {}
    cuts: dict[Inventory, Cut | None] = {}
    for one in inventories:
        with one.job.watch:
            standing[one] = one.standing()
            # Another process may have written it meanwhile.
            found = one.hit(standing[one], assembles=assembles)
            if found is None and not assembles:
                found = relabelled(one, standing[one])
            if found is not None:
                done[one] = report_cache(one.job, found, Computed())
            else:
                cuts[one] = cut(one, standing[one], assembles=assembles)
    computed = dict.fromkeys(cuts, Computed())
    todo = {one: begun for one, begun in cuts.items() if begun is not None and begun.todo}
    try:
        computed |= dict(zip(todo, compute(list(todo.values())) if todo else (), strict=True))
    except CacheUnwritable:
        published = {one: found for one in cuts if (found := one.hit(one.standing())) is not None}
        if len(published) < len(cuts):
            raise
        # The same share ran twice, and the other one has published the cache and removed the segments.
        return done | {one: report_cache(one.job, found, Computed()) for one, found in published.items()}
    for one, begun in cuts.items():
        with one.job.watch:
            if one.job.execution.shard is not None and begun is not None:
                done[one] = _share(one, begun, computed[one])
            else:
                done[one] = report_cache(one.job, _publish(one, standing[one], begun), computed[one])
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
            return report_cache(inventory.job, _publish(inventory, standing, cut), computed)
        if standing is not None and inventory.is_hit(standing):
            # The share that ended last has published it.
            return report_cache(inventory.job, standing, computed)
    mine = units_in(cut.units, job.execution.shard)
    own = {unit.segment.file for unit in mine}
    written = [split for split in inventory.segments_of(inventory.folder) if split.file.path.name in own]
    skipped = [one for split in written for one in skipped_in(split)]
    return report_share(job, inventory.folder, computed, images=sum(map(len, mine)), skipped=skipped)
