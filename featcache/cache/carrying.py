"""Keep the columns of `featcache label` when a cache changes, and replace the targets of a cache.

Columns that came from a table (`featcache label`) are kept, by sample id, when images are added, removed or changed,
and when the labels that come with the images (folder names, columns of their table) change. Columns that come with the
images are read again each time. To replace targets, no row is computed: a cache in segments gets a new file of targets;
a packed cache is written again whole, as a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.donors import Donors
from featcache.cache.info import CacheInfo
from featcache.cache.layout import ids_name, rows_in
from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import SegmentedFile, discard_other_targets, open_targets, with_targets
from featcache.cache.spec import Json
from featcache.cache.stored import StoredArrays
from featcache.cache.tables import SplitTable, encode_ids
from featcache.cache.targets import IMAGES, Column, array_name, columns_of, rows_by_id, target_from_file
from featcache.cache.writer import Progress, Scaling, write_packed
from featcache.errors import CacheDamaged, CacheForeign, CacheUnwritable
from featcache.files import free_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The targets of a cache, by sample id.

    Args:
        columns: Their descriptions.
        ids: By split: (n,) UTF-8 of fixed length.
        values: By split and column, one row for each id.
    """

    columns: tuple[Column, ...]
    ids: Mapping[str, npt.NDArray[np.bytes_]]
    values: Mapping[str, Mapping[str, npt.NDArray[Any]]]

    @classmethod
    def of(cls, file: StoredArrays) -> Targets:
        """Read them from a cache. Raises CacheDamaged, CacheForeign."""
        columns = columns_of(file.contents.texts)
        splits = tuple(rows_in(file.contents.arrays.values()))

        def read(split: str, column: Column) -> npt.NDArray[Any]:
            values = file.read_table(array_name(split, column.name))
            return target_from_file(column, values, f"{file.path}, {split}").values

        return cls(
            columns=columns,
            ids={split: file.read_table(ids_name(split)) for split in splits},
            values={split: {column.name: read(split, column) for column in columns} for split in splits},
        )

    def values_at(self, column: Column, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The values of a column at rows that `rows_of_ids` returned; -1 gives no value."""
        values = [self.values[one][column.name] for one in self._order(split)]
        return target_from_file(column, np.concatenate(values), "targets").at(rows).values

    def rows_of_ids(self, split: str, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """The row of each id among these targets (n,), in `split` if possible, else in another; -1: none has it."""
        return rows_by_id(np.concatenate([self.ids[one] for one in self._order(split)]), ids)

    def _order(self, split: str) -> list[str]:
        return sorted(self.ids, key=lambda one: one != split)


def targets_of(
    standing: FeatureCache | None, folder: Path, manifest: Manifest | None, report: Callable[[str], None]
) -> Targets | None:
    """The targets of the cache that will be changed; None where there are none.

    They are those of the complete cache `standing`, else those that the manifest of the unfinished one names. Damaged
    targets are reported, and lost.
    """
    try:
        if standing is not None:
            return Targets.of(standing.file)
        if manifest is None or manifest.targets is None:
            return None
        with closing(open_targets(folder, manifest)) as file:
            return Targets.of(file)
    except (CacheDamaged, CacheForeign) as error:
        report(f"{error.message}; targets added by `featcache label` are lost: add them again")
        return None


def carry_over(
    before: Targets | None, tables: Mapping[str, SplitTable], brought: Sequence[Column]
) -> tuple[tuple[Column, ...], dict[str, SplitTable], list[str]]:
    """Join the targets that come with the images and those that came from tables before.

    Args:
        before: The targets of the cache that will be changed; None where there is none.
        tables: The rows of each split, with the values of the targets that come with the images.
        brought: The targets that come with the images.

    Returns:
        The columns, the rows with the values of each column, and messages about what was kept and what has no value.
    """
    kept = [] if before is None else [column for column in before.columns if column.origin != IMAGES]
    if before is None or not kept:
        return tuple(brought), dict(tables), _describe_dropped(before, brought)
    replaced = {one.name for one in kept}
    columns = (*(one for one in brought if one.name not in replaced), *kept)
    joined, new = {}, 0
    for split, table in tables.items():
        places = before.rows_of_ids(split, encode_ids(split, table.ids))
        new += int(np.count_nonzero(places < 0))
        values = {column.name: before.values_at(column, split, places) for column in kept}
        joined[split] = replace(table, targets={**table.targets, **values})
    remarks = [describe_kept_target(column) for column in kept if column.name in {one.name for one in brought}]
    remarks += _describe_dropped(before, brought)
    if new:
        names = ", ".join(f"{column.name} ({column.origin})" for column in kept)
        remarks.append(f"{new:,} rows of new images have no value of {names}: `featcache label` adds them")
    return columns, joined, remarks


def _describe_dropped(before: Targets | None, brought: Sequence[Column]) -> list[str]:
    """A message about targets that came with the images before, and are not requested now."""
    requested = {column.name for column in brought}
    earlier = [] if before is None else [column.name for column in before.columns if column.origin == IMAGES]
    gone = [name for name in earlier if name not in requested]
    return [f"no longer requested, and removed: {', '.join(gone)} (`--column NAME` keeps one)"] if gone else []


def has_targets(cache: FeatureCache, brought: Sequence[Column], tables: Mapping[str, SplitTable]) -> bool:
    """Whether the targets from the images that a cache has are exactly `brought`, with the values in the tables.

    A target that a table has replaced is not compared.
    """
    own = {name for name, column in cache.targets.items() if column.origin == IMAGES}
    replaced = targets_from_tables(cache)
    return own <= {column.name for column in brought} and all(
        cache.targets.get(column.name) == column and has_values(cache, column, tables)
        for column in brought
        if column.name not in replaced
    )


def has_values(cache: FeatureCache, column: Column, tables: Mapping[str, SplitTable]) -> bool:
    """Whether a target of a cache equals a column and has the values of the tables. Its origin is not compared."""
    return replace(cache.targets[column.name], origin=column.origin) == column and all(
        np.array_equal(
            cache[split].target(column.name).values, table.targets[column.name], equal_nan=column.kind == "numbers"
        )
        for split, table in tables.items()
    )


def targets_from_tables(cache: FeatureCache) -> dict[str, Column]:
    """The targets of a cache that came from tables, by name."""
    return {name: column for name, column in cache.targets.items() if column.origin != IMAGES}


def describe_kept_target(column: Column) -> str:
    """The message about a target from a table that replaces the one from the images."""
    return (
        f"the target {column.name} keeps the values from {column.origin}; the images' own values are not used "
        f"(`featcache label ... --remove {column.name}`, then extract again, brings them back)"
    )


# --- rewriting ---------------------------------------------------------------------------------------------


def tables_of(cache: FeatureCache, targets: Sequence[str]) -> dict[str, SplitTable]:
    """The rows of a cache by split, with the values of these targets."""
    return {
        name: SplitTable(
            ids=split.ids,
            digests=split.digests,
            targets={target: split.target(target).values for target in targets},
        )
        for name, split in ((name, cache[name]) for name in cache)
    }


def bytes_to_write(cache: FeatureCache) -> int:
    """The number of bytes that a change of targets writes: for a packed cache the whole file."""
    written = cache.file.targets.path if isinstance(cache.file, SegmentedFile) else cache.path
    return written.stat().st_size


def rewrite(
    cache: FeatureCache,
    columns: Sequence[Column],
    tables: Mapping[str, SplitTable],
    *,
    provenance: Mapping[str, Json] | None = None,
    progress: Progress | None = None,
) -> None:
    """Replace the targets of a cache. No row is computed; readers that have the cache open keep the old targets.

    The caller holds the cache's lock. `cache` is closed where the operating system requires it; open it again to see
    the new targets.

    Args:
        cache: The cache.
        columns: All its targets from now on.
        tables: Its rows by split, with the values of every column.
        provenance: Its provenance from now on; None: as it is.
        progress: Called with (bytes written, bytes in all).

    Raises:
        InvalidOption: The values do not fit the columns.
        CacheUnwritable: The file cannot be written; the cache is unchanged.
        CacheDamaged: A row of a packed file does not match its checksum.
    """
    info = CacheInfo(
        spec=cache.spec,
        selection=cache.selection,
        set_name=cache.set_name,
        columns=columns,
        provenance=cache.provenance if provenance is None else provenance,
        skipped=cache.skipped,
    )
    stored, path = cache.file, cache.path
    if isinstance(stored, SegmentedFile):
        manifest = with_targets(path, stored.manifest, info, tables)
        manifest.write(path)
        discard_other_targets(path, manifest)
        return
    _require_space(path, bytes_to_write(cache))
    write_packed(
        path,
        info,
        tables=tables,
        donors=Donors([cache[split] for split in cache.splits]),
        scaling=_scaling_of(cache),
        progress=progress,
    )


def _require_space(path: Path, needed: int) -> None:
    free = free_bytes(path.parent)
    if free < needed:
        raise CacheUnwritable(
            f"a second copy of {path.name} is written before the first is replaced: it needs {needed:,} bytes, "
            f"{free:,} are free",
            hint="free some space",
        )


def _scaling_of(cache: FeatureCache) -> Scaling:
    arrays = [cache[cache.splits[0]].layer(layer) for layer in cache.layers]
    return {array.name: (array.scale, array.offset) for array in arrays}
