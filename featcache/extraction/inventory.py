"""Which rows exist already: in the cache itself, in its segments, and in other caches of the same spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.carrying import describe_kept_target, has_targets, has_values, targets_from_tables
from featcache.cache.catalog import CacheEntry, caches_with_spec, discard_segments, segments_path, single_file_path
from featcache.cache.donors import Donor, Donors
from featcache.cache.layout import views_in
from featcache.cache.locks import is_locked
from featcache.cache.manifest import SEGMENT_SUFFIX, TARGETS_FILES, Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import open_segment, open_segments
from featcache.cache.spec import Spec, cache_name
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredFile
from featcache.cache.tables import SplitTable, encode_ids
from featcache.cache.writer import serves
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, CacheNotFound
from featcache.extraction.behaviour import computes_the_same
from featcache.extraction.images import Numbers
from featcache.extraction.resolve import Job
from featcache.extraction.units import Unit


@dataclass(kw_only=True, eq=False)
class Inventory:
    """The existing rows of one extraction.

    Args:
        job: The extraction.
    """

    job: Job
    _reported: set[str] = field(default_factory=set, init=False, repr=False)

    def warn(self, text: str) -> None:
        """Report each warning once, even if a file is read several times."""
        self._once(self.job.reporter.warn, text)

    @property
    def features_dir(self) -> Path:
        """The folder of all caches, absolute like the paths of open ones, with which its paths are compared."""
        return self.job.request.features_dir.absolute()

    def _once(self, report: Callable[[str], None], text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            report(text)

    @property
    def packed_path(self) -> Path:
        """The path of the cache as one file, whether it exists or not."""
        job = self.job
        return single_file_path(self.features_dir / cache_name(job.source.name, job.spec, job.request.selection))

    @property
    def folder(self) -> Path:
        """The folder of its segments, whether it exists or not."""
        return segments_path(self.packed_path)

    @property
    def name(self) -> str:
        """The name of the cache."""
        return self.folder.name

    # --- the cache itself -----------------------------------------------------------------------------------

    def existing_cache(self) -> FeatureCache | None:
        """The complete cache under the extraction's name; a damaged one is reported and counts as absent.

        Raises CacheUnreadable where it cannot be opened now: computing it again would not solve that.
        """
        for path in (self.packed_path, self.folder):
            try:
                return FeatureCache.open(path)
            except (CacheNotFound, CacheIncomplete):
                continue
            except (CacheDamaged, CacheForeign) as error:
                self.warn(f"{error.message}; it counts as absent")
        return None

    def hit(self, existing: FeatureCache | None, *, assembles: bool = False) -> FeatureCache | None:
        """The cache that has every row already; None where there is none, or where `assemble` has to pack it."""
        found = existing if existing is not None and self.is_hit(existing) else self.cache_with_more_layers()
        packs = assembles and bool(self.job.execution.pack)
        return None if found is not None and packs and found.path.is_dir() else found

    def cache_with_more_layers(self) -> FeatureCache | None:
        """A complete cache of the same rows that holds the requested layers and others."""
        for entry in caches_with_spec(self.features_dir):
            if entry.complete and entry.selection == self.job.request.selection and self._is_served_by(entry.spec):
                cache = self._open(entry)
                if cache is not None and self.is_hit(cache):
                    return cache
        return None

    def is_hit(self, cache: FeatureCache) -> bool:
        """Whether a cache holds the rows of exactly these images, and their targets.

        Images whose digest is not known are read. A target that a table has replaced is kept, and reported once.
        """
        tables = self.rows_in(cache)
        return tables is not None and self._has_targets(cache, tables)

    def rows_in(self, cache: FeatureCache) -> dict[str, SplitTable] | None:
        """The rows with the images' targets, where a cache holds exactly these rows; else None."""
        images = self.job.images
        if not serves(cache.spec, self.job.spec) or cache.spec.views != self.job.spec.views:
            return None
        if cache.skipped and not self.job.skips:
            return None
        if sum(map(len, map(cache.__getitem__, cache.splits))) + len(cache.skipped) != len(images):
            return None
        images.read_unknown(images.numbers)
        # An image that cannot be read now must be among the skipped ones.
        unread = {images.samples[number] for number in images.unreadable}
        if not {(one.split, one.id) for one in unread} <= {(one.split, one.id) for one in cache.skipped}:
            return None
        tables = images.tables(cache.skipped)
        try:
            same = set(cache.splits) == set(tables) and all(_holds(cache[one], table) for one, table in tables.items())
        except CacheDamaged as error:
            self.warn(f"{error.message}; it is written anew")
            return None
        return tables if same else None

    def _has_targets(self, cache: FeatureCache, tables: Mapping[str, SplitTable]) -> bool:
        brought = self.job.images.columns
        replaced = targets_from_tables(cache)
        try:
            found = has_targets(cache, brought, tables)
            kept = [one.name for one in brought if one.name in replaced and not has_values(cache, one, tables)]
        except CacheDamaged as error:
            self.warn(f"{error.message}; it is written anew")
            return False
        for name in kept if found else ():
            self._once(self.job.reporter.info, describe_kept_target(replaced[name]))
        return found

    def discard_leftovers(self, cache: FeatureCache) -> None:
        """Remove segments left by a process that was killed right after it had packed them."""
        if cache.path == self.packed_path and self.folder.is_dir() and not is_locked(self.features_dir, self.name):
            discard_segments(self.folder)

    # --- its segments ---------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """The manifest of its segments, complete or not; None where there is no usable one."""
        try:
            return Manifest.read(self.folder)
        except CacheNotFound:
            return None
        except (CacheDamaged, CacheForeign) as error:
            self.warn(f"{error.message}; it is written anew")
            return None

    def is_written(self, unit: Unit, *, unchanged: bool = True) -> bool:
        """Whether a unit's segment has been written, and holds the rows that it would hold now.

        Args:
            unit: Of this extraction.
            unchanged: Check that the images have not changed since, by their digests; images whose digest is not known
                are read. Else the segment's own ids are trusted.
        """
        try:
            file = StoredFile.open(self.folder / unit.segment.file)
        except CacheNotFound:
            return False
        except (CacheDamaged, CacheForeign) as error:
            self.warn(f"{error.message}; it is computed again")
            return False
        with closing(file):
            try:
                return self._holds_rows_of(FeatureCache(file), unit, unchanged=unchanged)
            except CacheDamaged as error:
                self.warn(f"{error.message}; it is computed again")
                return False

    def _holds_rows_of(self, segment: FeatureCache, unit: Unit, *, unchanged: bool) -> bool:
        split = unit.segment.split
        if segment.spec != self.job.spec:
            return False
        if (segment.skipped and not self.job.skips) or split not in segment:
            return False
        if not self._is_the_same_function(segment[split]):
            return False
        images = self.job.images
        if unchanged:
            images.read_unknown(unit.images)
            kept = images.without_skipped(unit.images, segment.skipped)
            # Where every image of the unit was skipped, there is no table of rows.
            return _holds(segment[split], images.table(kept)) if len(kept) else not len(segment[split])
        kept = self.images_of(segment[split], unit)
        return len(kept) == len(segment[split]) and len(kept) + len(segment.skipped) == len(unit)

    def images_of(self, split: CachedSplit, unit: Unit) -> Numbers:
        """The numbers of the images whose rows a segment holds; empty where it holds rows of other images."""
        if len(split) == len(unit) and np.array_equal(
            split.encoded_ids, encode_ids(split.name, self.job.images.ids(unit.images))
        ):
            return unit.images
        samples = self.job.images.samples.take(unit.images)
        here = {sample.id: number for sample, number in zip(samples, unit.images.tolist(), strict=True)}
        numbers = [here.get(name, -1) for name in split.ids]
        return np.array([] if -1 in numbers else numbers, np.int64)

    # --- rows in other caches -------------------------------------------------------------------------------

    def donors(self, existing: FeatureCache | None) -> list[Donor]:
        """All splits whose rows can be reused: of the same spec, perhaps with more layers. Unfinished caches first."""
        entries = [one for one in caches_with_spec(self.features_dir) if self._is_served_by(one.spec)]
        found: list[CachedSplit] = []
        for entry in sorted(entries, key=lambda one: one.complete):
            if not entry.complete:
                found += self._every_segment_in(entry.path)
            elif existing is not None and entry.path == existing.path:
                found += [existing[split] for split in existing.splits]
            elif (cache := self._open(entry)) is not None:
                found += [cache[split] for split in cache.splits]
        if self.packed_path.exists() and self.folder.is_dir():
            # Segments of an unfinished increment: `caches_with_spec` lists only the packed cache.
            found += self._every_segment_in(self.folder)
        return [donor for donor in found if self._is_the_same_function(donor)]

    def missing(self, donors: Sequence[Donor]) -> Numbers:
        """The images of which a view has to be computed, ascending: (m,). Images with unknown digests are read."""
        images, found = self.job.images, Donors(donors, self.warn)
        images.read_unknown(images.numbers)
        missing = []
        for split in images.splits:
            numbers = images.numbers_of(split)
            absent: npt.NDArray[np.bool_] = np.zeros(len(numbers), np.bool_)
            for view in range(views_in(self.job.spec, split)):
                located = found.locate(images.digests[numbers], self.job.spec.layer_names, view)
                absent |= (located.donor < 0) | ~images.known[numbers]
            missing.append(numbers[absent])
        return np.concatenate(missing)

    def rows_of(self, cache: FeatureCache) -> list[Donor]:
        """The splits of a cache whose rows can be reused."""
        splits = [cache[split] for split in cache.splits]
        return (
            [split for split in splits if self._is_the_same_function(split)] if self._is_served_by(cache.spec) else []
        )

    def _every_segment_in(self, folder: Path) -> list[CachedSplit]:
        """The rows of all segments in a folder, also of those that remain from an earlier cut."""
        found: list[CachedSplit] = []
        for path in sorted(folder.glob(f"*{SEGMENT_SUFFIX}")):
            if path.name in TARGETS_FILES:
                continue
            found += open_segment(path, self.warn)
        return [split for split in found if self._is_served_by(split.spec)]

    def segments_of(self, folder: Path) -> list[CachedSplit]:
        """The rows of the written segments that the folder's manifest names."""
        try:
            manifest = Manifest.read(folder)
        except (CacheDamaged, CacheForeign, CacheNotFound):
            return []
        return [split for _, split in open_segments(folder, manifest, self.warn)]

    def _is_served_by(self, spec: Spec | None) -> bool:
        return spec is not None and serves(spec, self.job.spec)

    def _is_the_same_function(self, donor: CachedSplit) -> bool:
        """Whether the network computes the donor's rows now too, by its outputs on the probe images."""
        provenance: Mapping[str, Any] = donor.provenance
        return computes_the_same(self.job.backbone, provenance, self.job.spec.layer_names)

    def _open(self, entry: CacheEntry) -> FeatureCache | None:
        try:
            return FeatureCache.open(entry.path)
        except (CacheDamaged, CacheForeign, CacheNotFound) as error:
            self.warn(f"{error.message}; its rows are not reused")
            return None


def _holds(split: CachedSplit, table: SplitTable) -> bool:
    """Whether a split holds exactly these rows, whatever their targets."""
    return (
        len(split) == len(table)
        and np.array_equal(split.digests, table.digests)
        and np.array_equal(split.encoded_ids, encode_ids(split.name, table.ids))
    )
