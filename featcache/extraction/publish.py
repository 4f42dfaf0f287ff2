"""From segments that are all written to a cache that can be used: packed into one file, or completed where they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from featcache.backbones.describe import Choice
from featcache.cache.carrying import Targets, bytes_to_write, carried, rewrite, targets_of
from featcache.cache.catalog import discard_segments, set_aside
from featcache.cache.donors import Donors
from featcache.cache.info import CacheInfo
from featcache.cache.locks import locked
from featcache.cache.manifest import SEGMENT_SUFFIX, Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import complete_manifest
from featcache.cache.spec import Json, Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.targets import Column, label_column
from featcache.cache.writer import Scaling, write_packed
from featcache.errors import SourceError
from featcache.extraction.inventory import Inventory
from featcache.extraction.plan import Plan
from featcache.extraction.reporting import human_bytes
from featcache.extraction.tables import split_tables

# Up to so many bytes of features a cache becomes one file.
PACKED_BYTES = 4 << 30


def packs(asked: bool | None, spec: Spec, rows: int) -> bool:
    """Whether a cache becomes one file. `asked`: by --pack or --no-pack; None: where it is small."""
    return rows * row_bytes(spec) <= PACKED_BYTES if asked is None else asked


def row_bytes(spec: Spec) -> int:
    """What one row takes, over all layers."""
    return sum(layer.feature_dim for layer in spec.layers) * np.dtype(spec.dtype).itemsize


def publish(
    inventory: Inventory,
    plan: Plan,
    *,
    standing: FeatureCache | None,
    manifest: Manifest | None,
    packed: bool,
    advance: Callable[[int, int], None],
) -> FeatureCache:
    """Make the cache of segments that are all written, and of rows that the standing cache has.

    Args:
        inventory: Of the extraction.
        plan: Its rows.
        standing: The complete cache under its name, which may have rows of the new one.
        manifest: The segments; None where the standing cache has every row.
        packed: Whether it becomes one file.
        advance: Called with the bytes of features packed so far and in all.

    Raises:
        SourceError: Every image was left out.
        CacheError: What the writer raises.
    """
    segments = [] if manifest is None else inventory.segments_of(inventory.folder)
    sources = [*segments, *([standing[split] for split in standing.splits] if standing is not None else [])]
    lost = list(_skipped(sources))
    lost += [Skipped(id=s.id, split=s.split, reason=reason) for s, reason in plan.unreadable]
    info = CacheInfo(
        spec=inventory.spec,
        selection=inventory.request.selection,
        set_name=inventory.source.name,
        provenance=_provenance(inventory, sources),
        skipped=_of_plan(lost, plan),
    )
    tables = {split: table for split, table in split_tables(plan, info.skipped).items() if len(table)}
    if not tables:
        raise SourceError(f"every image of {inventory.source.name} was skipped", hint="run with --on-error fail")
    before = targets_of(standing, inventory.folder, manifest, inventory.reporter.warn)
    columns, tables = _with_targets(inventory, before, tables)
    info = replace(info, columns=columns)
    if packed or manifest is None:
        _move_aside(inventory, standing)
        donors = Donors(sources, inventory.reporter.warn)
        write_packed(
            inventory.packed_path,
            info,
            tables=tables,
            donors=donors,
            scaling=scaling_of(inventory),
            progress=advance,
        )
        _close(sources)
        discard_segments(inventory.folder)
        return FeatureCache.open(inventory.packed_path)
    _close(sources)
    done = complete_manifest(inventory.folder, manifest, info, tables)
    done.write(inventory.folder)
    _discard_unnamed(inventory, done)
    return FeatureCache.open(inventory.folder)


def relabelled(inventory: Inventory, plan: Plan, standing: FeatureCache | None) -> FeatureCache | None:
    """The standing cache with the labels that its images have now, where nothing else has changed; else None.

    No row is computed: only targets are written.
    """
    if standing is None:
        return None
    with locked(inventory.request.features_dir, f"{inventory.folder.name}.manifest"):
        tables = inventory.rows_in(standing, plan)
        if tables is None or inventory.is_hit(standing, plan):
            return None
        columns, tables = _with_targets(inventory, Targets.of(standing.file), tables)
        size = human_bytes(bytes_to_write(standing))
        inventory.reporter.say(f"only the labels have changed: no row is computed, {size} are written again")
        rewrite(standing, columns, tables)
    return FeatureCache.open(standing.path)


def _with_targets(
    inventory: Inventory, before: Targets | None, tables: Mapping[str, SplitTable]
) -> tuple[tuple[Column, ...], dict[str, SplitTable]]:
    columns, whole, remarks = carried(before, tables, label_column(inventory.source.classes))
    for remark in remarks:
        inventory.reporter.say(remark)
    return columns, whole


def scaling_of(inventory: Inventory) -> Scaling | None:
    """Of layers whose values are stored otherwise than they are."""
    scaling = inventory.backbone.scaling
    return None if scaling is None else {inventory.backbone.name: scaling}


def now() -> str:
    """An ISO 8601 time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _skipped(sources: Iterable[CachedSplit]) -> Iterable[Skipped]:
    seen = set()
    for split in sources:
        if (text := split.file.contents.texts["skipped"]) not in seen:
            seen.add(text)
            yield from (Skipped(**one) for one in json.loads(text))


def _of_plan(lost: Sequence[Skipped], plan: Plan) -> list[Skipped]:
    """Those that are still images of the set, with the same bytes, each once, in the order of the set."""
    by_name = {(one.split, one.id): one for one in lost}
    unread = {(sample.split, sample.id) for sample, _ in plan.unreadable}
    found = []
    for split, samples in plan.samples.items():
        names = {name for where, name in by_name if where == split}
        if not names:
            continue
        for row, sample in enumerate(samples):
            if sample.id in names and by_name[split, sample.id].digest == plan.digests[split][row].tobytes().hex():
                found.append(by_name[split, sample.id])
    return found + [one for key, one in by_name.items() if key in unread]


def _provenance(inventory: Inventory, sources: Sequence[CachedSplit]) -> dict[str, Any]:
    """How the rows were computed, as the first source of rows has it, and what belongs to the cache as a whole."""
    backbone, request = inventory.backbone, inventory.request
    computed: Mapping[str, Json] = sources[0].provenance if sources else {}
    drift = next((one for split in sources if (one := split.provenance.get("drift")) is not None), None)
    return {
        **computed,
        "drift": drift,
        "created": now(),
        "weights": backbone.source,
        "parameters": backbone.parameters,
        "normalize": request.normalize or ("half" if backbone.stores_bytes else "weights"),
        "choice": None if backbone.is_own_module else Choice.of(request.backbone_options).to_json(),
    }


def _move_aside(inventory: Inventory, standing: FeatureCache | None) -> None:
    """Rename an unreadable file at the cache's path instead of overwriting it."""
    path = inventory.packed_path
    if path.exists() and (standing is None or standing.path != path):
        inventory.reporter.warn(f"it was kept as {set_aside(path)} (`featcache gc` lists it)")


def _close(splits: Iterable[CachedSplit]) -> None:
    for split in splits:
        split.file.close()


def _discard_unnamed(inventory: Inventory, manifest: Manifest) -> None:
    """Remove segments of an earlier cut, and a packed file that the segments replace."""
    named = set(manifest.sizes)
    unnamed = [path for path in inventory.folder.glob(f"*{SEGMENT_SUFFIX}") if path.name not in named]
    for path in [*unnamed, inventory.packed_path]:
        # Where open files cannot go, a reader keeps it: gc takes it later.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def begin(inventory: Inventory, segments: Sequence[Any], segment_rows: int, command: str) -> Manifest:
    """Write the manifest of an extraction that begins or goes on, and return it. Raises CacheUnwritable."""
    info = CacheInfo(
        spec=inventory.spec,
        selection=inventory.request.selection,
        set_name=inventory.source.name,
        provenance={"created": now()},
    )
    before = inventory.manifest()
    manifest = Manifest(
        texts=info.texts(),
        segments=tuple(segments),
        segment_rows=segment_rows,
        command=command,
        # What tables brought is taken over when it is finished, however often it is stopped before.
        targets=None if before is None else before.targets,
    )
    if before is None or _differs(before, manifest):
        manifest.write(inventory.folder)
        return manifest
    return before


def _differs(before: Manifest, manifest: Manifest) -> bool:
    same = replace(manifest, texts={**manifest.texts, "provenance": before.texts["provenance"]})
    return before != replace(same, command=before.command)
