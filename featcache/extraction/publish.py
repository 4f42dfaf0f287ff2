"""Publish a cache from its written segments: packed into one file, or as segments with a complete manifest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featcache.cache.carrying import Targets, bytes_to_write, carry_over, rewrite, targets_of
from featcache.cache.catalog import discard_segments, keep_damaged
from featcache.cache.donors import Donors
from featcache.cache.info import CacheInfo
from featcache.cache.layout import views_in
from featcache.cache.locks import lock_cache
from featcache.cache.manifest import SEGMENT_SUFFIX, Manifest, Segment
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import complete_manifest
from featcache.cache.spec import Json, Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.targets import Column
from featcache.cache.writer import Scaling, write_packed
from featcache.errors import SourceError
from featcache.extraction.experiment_tables import experiment_tables
from featcache.extraction.inventory import Inventory
from featcache.extraction.resolve import Job
from featcache.extraction.units import Unit
from featcache.text import human_bytes

# A cache with at most this many bytes of features becomes one file.
PACKED_BYTES = 4 << 30


def packs(job: Job) -> bool:
    """Whether the cache becomes one file: as requested, else if it is small."""
    requested = job.execution.pack
    return feature_bytes(job.spec, job.images.rows_of_splits) <= PACKED_BYTES if requested is None else requested


def feature_bytes(spec: Spec, rows: Mapping[str, int]) -> int:
    """The bytes of `rows` rows per split, over all layers and views."""
    width = sum(layer.feature_dim for layer in spec.layers) * np.dtype(spec.dtype).itemsize
    return width * sum(count * views_in(spec, split) for split, count in rows.items())


def publish(
    inventory: Inventory,
    *,
    existing: FeatureCache | None,
    manifest: Manifest | None,
    units: Sequence[Unit],
) -> FeatureCache:
    """Make the cache from written segments and from rows of the existing cache.

    Args:
        inventory: Of the extraction.
        existing: The complete cache under its name, which may have rows of the new one.
        manifest: The segments; None where the existing cache has every row.
        units: The units of the segments.

    Returns:
        The published cache, open.

    Raises:
        SourceError: Every image was skipped.
        CacheError: The cache cannot be written.
    """
    job, images = inventory.job, inventory.job.images
    segments = [] if manifest is None else inventory.segments_of(inventory.folder)
    sources = [*segments, *([existing[split] for split in existing.splits] if existing is not None else [])]
    packed = packs(job) or manifest is None
    if packed:
        _learn_digests(inventory, segments, units)
    info = CacheInfo(
        spec=job.spec,
        selection=job.request.selection,
        set_name=job.source.name,
        provenance=_provenance(job, sources),
        # Where segments hold all rows, only they know what was skipped; the packed cache that they replace may be old.
        skipped=images.still_skipped(
            [one for split in (sources if packed else segments) for one in read_skipped(split)]
        ),
    )
    tables = images.tables(info.skipped)
    if not tables:
        raise SourceError(f"every image of {job.source.name} was skipped", hint="run with --on-error fail")
    before = targets_of(existing, inventory.folder, manifest, inventory.warn)
    columns, tables = _with_targets(job, before, tables)
    info = replace(info, columns=columns)
    if packed or manifest is None:
        _move_aside(inventory, existing)
        write_packed(
            inventory.packed_path,
            info,
            tables=tables,
            donors=Donors(sources, inventory.warn),
            scaling=scaling_of(job),
            progress=lambda done, total: job.reporter.advance("packing", done, total),
        )
        _close(sources)
        discard_segments(inventory.folder)
        return FeatureCache.open(inventory.packed_path)
    _close(sources)
    done = complete_manifest(inventory.folder, manifest, info, tables)
    done.write(inventory.folder)
    _discard_unnamed(inventory, done)
    return FeatureCache.open(inventory.folder)


def _learn_digests(inventory: Inventory, segments: Sequence[CachedSplit], units: Sequence[Unit]) -> None:
    """Read the digests of images that another process has computed, from its segments."""
    images, by_file = inventory.job.images, {split.file.path.name: split for split in segments}
    for unit in units:
        if not images.known[unit.images].all() and (split := by_file.get(unit.segment.file)) is not None:
            numbers = inventory.images_of(split, unit)
            images.learn(numbers, split.digests[: len(numbers)])


def relabel(inventory: Inventory, existing: FeatureCache | None) -> FeatureCache | None:
    """Write the current targets of the images into the existing cache, where nothing else has changed.

    No row is computed.

    Returns:
        The cache with its new targets; None where something else has changed too, or nothing at all.
    """
    if existing is None:
        return None
    with lock_cache(inventory.features_dir, f"{inventory.name}.manifest"):
        tables = inventory.rows_in(existing)
        if tables is None or inventory.is_hit(existing):
            return None
        before = targets_of(existing, inventory.folder, None, inventory.warn)
        columns, tables = _with_targets(inventory.job, before, tables)
        size = human_bytes(bytes_to_write(existing))
        inventory.job.reporter.info(f"only targets have changed: no row is computed, {size} are written again")
        provenance = {**existing.provenance, "experiment": experiment_tables(inventory.job)}
        rewrite(existing, columns, tables, provenance=provenance)
    return FeatureCache.open(existing.path)


def _with_targets(
    job: Job, before: Targets | None, tables: Mapping[str, SplitTable]
) -> tuple[tuple[Column, ...], dict[str, SplitTable]]:
    columns, whole, remarks = carry_over(before, tables, job.images.columns)
    for remark in remarks:
        job.reporter.info(remark)
    return columns, whole


def scaling_of(job: Job) -> Scaling | None:
    """Scale and offset of layers that are stored as integers; None where there are none."""
    scaling = job.backbone.scaling
    return None if scaling is None else {job.backbone.name: scaling}


def now() -> str:
    """The current time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_skipped(split: CachedSplit) -> tuple[Skipped, ...]:
    """The skipped images that are recorded in the file of a split."""
    return tuple(Skipped(**one) for one in json.loads(split.file.contents.texts["skipped"]))


def _provenance(job: Job, sources: Sequence[CachedSplit]) -> dict[str, Any]:
    """How the rows were computed, by the first source of rows, and the facts of the cache as a whole."""
    backbone, request = job.backbone, job.request
    computed: Mapping[str, Json] = sources[0].provenance if sources else {}
    drift = next((one for split in sources if (one := split.provenance.get("drift")) is not None), None)
    return {
        **computed,
        "drift": drift,
        "created": now(),
        "weights": backbone.source,
        "parameters": backbone.parameters,
        "normalize": request.normalize or ("half" if backbone.stores_bytes else "weights"),
        "experiment": experiment_tables(job),
    }


def _move_aside(inventory: Inventory, existing: FeatureCache | None) -> None:
    """Rename an unreadable file at the cache's path instead of overwriting it."""
    path = inventory.packed_path
    if path.exists() and (existing is None or existing.path != path):
        job = inventory.job
        kept = job.request.features_dir / keep_damaged(path).name
        job.reporter.warn(f"the unreadable file was kept as {kept} (`featcache gc` lists it)")


def _close(splits: Iterable[CachedSplit]) -> None:
    for split in splits:
        split.file.close()


def _discard_unnamed(inventory: Inventory, manifest: Manifest) -> None:
    """Remove segments of an earlier cut, and a packed file that the segments replace."""
    named = set(manifest.sizes)
    unnamed = [path for path in inventory.folder.glob(f"*{SEGMENT_SUFFIX}") if path.name not in named]
    for path in [*unnamed, inventory.packed_path]:
        # On some systems an open file cannot be removed: then `gc` removes it later.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def begin(inventory: Inventory, segments: Sequence[Segment], segment_rows: int) -> Manifest:
    """Write the manifest of an extraction that begins or continues, and return it. Raises CacheUnwritable."""
    job = inventory.job
    info = CacheInfo(
        spec=job.spec,
        selection=job.request.selection,
        set_name=job.source.name,
        provenance={"created": now()},
    )
    before = inventory.manifest()
    manifest = Manifest(
        texts=info.texts(),
        segments=tuple(segments),
        segment_rows=segment_rows,
        command=job.request.command,
        # Targets from tables are kept until the extraction is finished, even if it is stopped several times.
        targets=None if before is None else before.targets,
    )
    if before is None or _differs(before, manifest):
        manifest.write(inventory.folder)
        return manifest
    return before


def _differs(before: Manifest, manifest: Manifest) -> bool:
    same = replace(manifest, texts={**manifest.texts, "provenance": before.texts["provenance"]})
    return before != replace(same, command=before.command)
