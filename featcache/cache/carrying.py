"""Targets that outlive a change: a cache's columns taken over by sample id, and written again without its rows.

Columns that a table brought stay when images come, go or change, and when the images' own labels do; what the images
bring is taken from them each time.
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
from featcache.cache.stored import StoredArrays
from featcache.cache.tables import SplitTable, encoded_ids
from featcache.cache.targets import IMAGES, Column, array_name, columns_of, rows_by_id, stored_target
from featcache.cache.writer import Progress, Scaling, write_packed
from featcache.errors import CacheDamaged, CacheForeign, CacheUnwritable
from featcache.files import free_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The targets of a cache that was or is, by sample id.

    Args:
        columns: What they are.
        ids: By split: (n,) UTF-8 of fixed length.
        values: By split and column, a row for each id.
    """

    columns: tuple[Column, ...]
    ids: Mapping[str, npt.NDArray[np.bytes_]]
    values: Mapping[str, Mapping[str, npt.NDArray[Any]]]

    @classmethod
    def of(cls, file: StoredArrays) -> Targets:
        """Those in a file, or beside segments. Raises CacheDamaged, CacheForeign."""
        columns = columns_of(file.contents.texts)
        splits = tuple(rows_in(file.contents.arrays.values()))

        def read(split: str, column: Column) -> npt.NDArray[Any]:
            values = file.read_table(array_name(split, column.name))
            return stored_target(column, values, f"{file.path}, {split}").values

        return cls(
            columns=columns,
            ids={split: file.read_table(ids_name(split)) for split in splits},
            values={split: {column.name: read(split, column) for column in columns} for split in splits},
        )

    def column_at(self, column: Column, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The values of a column at rows as `places` gives them: -1 has none."""
        values = [self.values[one][column.name] for one in self._order(split)]
        return stored_target(column, np.concatenate(values), "targets").at(rows).values

    def places(self, split: str, ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """Where each id (n,) stands, first in its own split, else in another; -1 where in none."""
        return rows_by_id(np.concatenate([self.ids[one] for one in self._order(split)]), ids)

    def _order(self, split: str) -> list[str]:
        return sorted(self.ids, key=lambda one: one != split)


def targets_of(
    standing: FeatureCache | None, folder: Path, manifest: Manifest | None, report: Callable[[str], None]
) -> Targets | None:
    """The targets of the cache that is changed: of the complete one, else those that its manifest still names.

    None where there are none. Those that are damaged are reported and lost.
    """
    try:
        if standing is not None:
            return Targets.of(standing.file)
        if manifest is None or manifest.targets is None:
            return None
        with closing(open_targets(folder, manifest)) as file:
            return Targets.of(file)
    except (CacheDamaged, CacheForeign) as error:
        report(f"{error.message}; targets that `featcache label` had added are lost: add them again")
        return None


def carried(
    before: Targets | None, tables: Mapping[str, SplitTable], brought: Sequence[Column]
) -> tuple[tuple[Column, ...], dict[str, SplitTable], list[str]]:
    """Rows with all their targets: those that the images bring, and those that tables brought before.

    Args:
        before: The targets of the cache that is changed; None where there is none.
        tables: The rows of each split, with the values of the targets that the images bring.
        brought: Those targets.

    Returns:
        The columns, the rows with the values of each, and sentences about what was kept and what has no value.
    """
    kept = [] if before is None else [column for column in before.columns if column.origin != IMAGES]
    if before is None or not kept:
        return tuple(brought), dict(tables), _no_longer_asked(before, brought)
    replaced = {one.name for one in kept}
    columns = (*(one for one in brought if one.name not in replaced), *kept)
    whole, new = {}, 0
    for split, table in tables.items():
        places = before.places(split, encoded_ids(split, table.ids))
        new += int(np.count_nonzero(places < 0))
        theirs = {column.name: before.column_at(column, split, places) for column in kept}
        whole[split] = replace(table, targets={**table.targets, **theirs})
    remarks = [kept_target(column) for column in kept if column.name in {one.name for one in brought}]
    remarks += _no_longer_asked(before, brought)
    if new:
        names = ", ".join(f"{column.name} ({column.origin})" for column in kept)
        remarks.append(f"{new:,} rows of new images have no value of {names}: `featcache label` adds them")
    return columns, whole, remarks


def _no_longer_asked(before: Targets | None, brought: Sequence[Column]) -> list[str]:
    """A sentence about targets that the images brought before, and that are not asked for now."""
    asked = {column.name for column in brought}
    gone = (
        [] if before is None else [one.name for one in before.columns if one.origin == IMAGES and one.name not in asked]
    )
    return [f"no longer asked for, and removed: {', '.join(gone)} (`--column NAME` keeps one)"] if gone else []


def has_targets(cache: FeatureCache, brought: Sequence[Column], tables: Mapping[str, SplitTable]) -> bool:
    """Whether a cache has the targets that its images bring and no other of theirs, with the values in the tables.

    One that a table has replaced counts as it is.
    """
    own = {name for name, column in cache.targets.items() if column.origin == IMAGES}
    replaced = replaced_targets(cache)
    return own <= {column.name for column in brought} and all(
        cache.targets.get(column.name) == column and has_values(cache, column, tables)
        for column in brought
        if column.name not in replaced
    )


def has_values(cache: FeatureCache, column: Column, tables: Mapping[str, SplitTable]) -> bool:
    """Whether a target of a cache is a column and has the values of the tables, wherever these came from."""
    return replace(cache.targets[column.name], origin=column.origin) == column and all(
        np.array_equal(
            cache[split].target(column.name).values, table.targets[column.name], equal_nan=column.kind == "numbers"
        )
        for split, table in tables.items()
    )


def replaced_targets(cache: FeatureCache) -> dict[str, Column]:
    """The targets of a cache that tables brought, by their names."""
    return {name: column for name, column in cache.targets.items() if column.origin != IMAGES}


def kept_target(column: Column) -> str:
    """The sentence about a target that a table brought in place of what the images bring."""
    return (
        f"the target {column.name} is kept as {column.origin} has it; the images' own values are not used "
        f"(`featcache label ... --remove {column.name}`, then extract again, brings them back)"
    )


# --- written again -----------------------------------------------------------------------------------------


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
    """How many bytes other targets of a cache take to write: those of the whole file where it is packed."""
    stored = cache.file.targets if isinstance(cache.file, SegmentedFile) else cache.file
    return stored.nbytes


def rewrite(
    cache: FeatureCache,
    columns: Sequence[Column],
    tables: Mapping[str, SplitTable],
    *,
    progress: Progress | None = None,
) -> None:
    """Give a cache other targets. No row is computed; readers that have it open keep what they have.

    The caller holds the cache's lock. `cache` is closed where the operating system needs it; open it again to see
    the new targets.

    Args:
        cache: The cache.
        columns: All its targets from now on.
        tables: Its rows by split, with the values of every column.
        progress: Called with bytes written and in all.

    Raises:
        InvalidOption: The values do not fit the columns.
        CacheUnwritable: The disk refuses it; the cache is what it was.
        CacheDamaged: A row of a packed file does not match its checksum.
    """
    info = CacheInfo(
        spec=cache.spec,
        selection=cache.selection,
        set_name=cache.set_name,
        columns=columns,
        provenance=cache.provenance,
        skipped=cache.skipped,
    )
    stored, path = cache.file, cache.path
    if isinstance(stored, SegmentedFile):
        manifest = with_targets(path, stored.manifest, info, tables)
        manifest.write(path)
        discard_other_targets(path, manifest)
        return
    _require_room(path, bytes_to_write(cache))
    write_packed(
        path,
        info,
        tables=tables,
        donors=Donors([cache[split] for split in cache.splits]),
        scaling=_scaling_of(cache),
        progress=progress,
    )


def _require_room(path: Path, needed: int) -> None:
    free = free_bytes(path.parent)
    if free < needed:
        raise CacheUnwritable(
            f"{path.name} is written again beside itself: it needs {needed:,} bytes, {free:,} are free",
            hint="free some space",
        )


def _scaling_of(cache: FeatureCache) -> Scaling:
    arrays = [cache[cache.splits[0]].layer(layer) for layer in cache.layers]
    return {array.name: (array.scale, array.offset) for array in arrays}
