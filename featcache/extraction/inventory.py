"""Which rows stand already: in the cache itself, in its segments, and in others of the same spec."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.spec import BackboneSpec
from featcache.cache.carrying import has_labels, kept_label, replaced_label
from featcache.cache.catalog import CacheEntry, candidates, discard_segments, packed_path, segments_path
from featcache.cache.donors import Donor
from featcache.cache.locks import is_locked
from featcache.cache.manifest import Manifest
from featcache.cache.reader import FeatureCache
from featcache.cache.segments import open_segments
from featcache.cache.spec import Spec, cache_name
from featcache.cache.splits import CachedSplit
from featcache.cache.stored import StoredFile
from featcache.cache.tables import SplitTable, encoded_ids
from featcache.cache.targets import label_column
from featcache.cache.writer import serves
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, CacheNotFound
from featcache.extraction.behaviour import computes_the_same
from featcache.extraction.plan import Plan
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.tables import rows_kept, split_tables
from featcache.extraction.units import Unit
from featcache.images.sources import ImageSource


@dataclass(kw_only=True, eq=False)
class Inventory:
    """What there is of one extraction's rows.

    Args:
        request: What is asked.
        backbone, spec: Of the rows.
        source: The images.
        skip: Whether images may have been left out.
        reporter: Hears of files that cannot be used.
    """

    request: Request
    backbone: BackboneSpec
    spec: Spec
    source: ImageSource
    skip: bool
    reporter: Reporter
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    def _warn(self, text: str) -> None:
        """Once each, however often a file is looked at."""
        if text not in self._warned:
            self._warned.add(text)
            self.reporter.warn(text)

    def _say_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self.reporter.say(text)

    @property
    def packed_path(self) -> Path:
        """Where the cache lies, or will lie, in one file."""
        name = cache_name(self.source.name, self.spec, self.request.selection)
        return packed_path(self.request.features_dir / name)

    @property
    def folder(self) -> Path:
        """Where its segments lie, or will lie."""
        return segments_path(self.packed_path)

    # --- the cache itself -----------------------------------------------------------------------------------

    def standing(self) -> FeatureCache | None:
        """The complete cache under the extraction's name; what is damaged is reported and counts as absent.

        Raises CacheUnreadable where it cannot be opened now: to compute it again would be no answer to that.
        """
        for path in (self.packed_path, self.folder):
            try:
                return FeatureCache.open(path)
            except (CacheNotFound, CacheIncomplete):
                continue
            except (CacheDamaged, CacheForeign) as error:
                self._warn(f"{error.message}; it counts as absent")
        return None

    def hit(self, standing: FeatureCache | None, plan: Plan) -> FeatureCache | None:
        """The cache that has every row already; None where there is none."""
        if standing is not None and self.is_hit(standing, plan):
            return standing
        return self.wider(plan)

    def wider(self, plan: Plan) -> FeatureCache | None:
        """A cache of the same rows that holds the asked layers among others: asking for some of them is a hit."""
        for entry in candidates(self.request.features_dir):
            if entry.complete and entry.selection == self.request.selection and self._is_served_by(entry.spec):
                cache = self._opened(entry)
                if cache is not None and self.is_hit(cache, plan):
                    return cache
        return None

    def is_hit(self, cache: FeatureCache, plan: Plan) -> bool:
        """Whether a cache holds exactly the plan's rows, under the same labels and classes.

        A target `label` that a table brought is kept, which is said once.
        """
        tables = self.rows_in(cache, plan)
        return tables is not None and self._has_labels(cache, tables)

    def rows_in(self, cache: FeatureCache, plan: Plan) -> dict[str, SplitTable] | None:
        """The plan's rows with the images' labels, where a cache holds exactly these rows; else None."""
        if not self._is_served_by(cache.spec) or (cache.skipped and not self.skip):
            return None
        unread = {(sample.split, sample.id) for sample, _ in plan.unreadable}
        if not unread <= {(one.split, one.id) for one in cache.skipped}:
            return None
        kept = {split: table for split, table in split_tables(plan, cache.skipped).items() if len(table)}
        same = set(cache.splits) == set(kept) and all(_holds(cache[split], table) for split, table in kept.items())
        return kept if same else None

    def _has_labels(self, cache: FeatureCache, tables: Mapping[str, SplitTable]) -> bool:
        label = label_column(self.source.classes)
        if has_labels(cache, label, tables):
            return True
        replaced = replaced_label(cache)
        if replaced is not None:
            self._say_once(kept_label(replaced))
        return replaced is not None

    def discard_leftovers(self, cache: FeatureCache) -> None:
        """Remove segments that a process left which was killed right after it had packed them."""
        features_dir = self.request.features_dir
        if cache.path == self.packed_path and self.folder.is_dir() and not is_locked(features_dir, self.folder.name):
            discard_segments(self.folder)

    # --- its segments ---------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """The manifest of its segments, complete or not; None where there is none that can be used."""
        try:
            return Manifest.read(self.folder)
        except CacheNotFound:
            return None
        except (CacheDamaged, CacheForeign) as error:
            self._warn(f"{error.message}; it is written anew")
            return None

    def stands(self, unit: Unit, plan: Plan) -> bool:
        """Whether a unit's segment has been written, and holds the rows that it would hold now."""
        try:
            file = StoredFile.open(self.folder / unit.segment.file)
        except CacheNotFound:
            return False
        except (CacheDamaged, CacheForeign) as error:
            self._warn(f"{error.message}; it is computed again")
            return False
        with closing(file):
            segment = FeatureCache(file)
            if segment.spec != self.spec:
                return False
            if (segment.skipped and not self.skip) or unit.segment.split not in segment:
                return False
            table = plan.at(unit.rows).table(slice(0, len(unit)))
            kept = rows_kept(table, segment.skipped, plan.views_in(unit.segment.split))
            split = CachedSplit(file, segment.spec, unit.segment.split)
            return self._is_the_same_function(split) and _holds(split, table.take(kept))

    # --- rows that others have ------------------------------------------------------------------------------

    def donors(self, standing: FeatureCache | None) -> list[Donor]:
        """Everything whose rows were computed under the same spec, further layers aside: unfinished caches first."""
        entries = [one for one in candidates(self.request.features_dir) if self._is_served_by(one.spec)]
        found: list[CachedSplit] = []
        for entry in sorted(entries, key=lambda one: one.complete):
            if not entry.complete:
                found += self.segments_of(entry.path)
            elif standing is not None and entry.path == standing.path:
                found += [standing[split] for split in standing.splits]
            elif (cache := self._opened(entry)) is not None:
                found += [cache[split] for split in cache.splits]
        if self.packed_path.exists() and self.folder.is_dir():
            # An increment on its way: `candidates` lists the packed cache alone.
            found += self.segments_of(self.folder)
        return [donor for donor in found if self._is_the_same_function(donor)]

    def rows_of(self, cache: FeatureCache) -> list[Donor]:
        """What of one cache can be reused."""
        splits = [cache[split] for split in cache.splits]
        return (
            [split for split in splits if self._is_the_same_function(split)] if self._is_served_by(cache.spec) else []
        )

    def segments_of(self, folder: Path) -> list[CachedSplit]:
        """The rows of segments that have been written."""
        try:
            manifest = Manifest.read(folder)
        except (CacheDamaged, CacheForeign, CacheNotFound):
            return []
        return [split for _, split in open_segments(folder, manifest, self._warn)]

    def _is_served_by(self, spec: Spec | None) -> bool:
        return spec is not None and serves(spec, self.spec)

    def _is_the_same_function(self, donor: CachedSplit) -> bool:
        """Whether a row of the donor is what the network computes now, by its outputs on the probe images."""
        provenance: Mapping[str, Any] = donor.provenance
        return computes_the_same(self.backbone, provenance, self.spec.layer_names)

    def _opened(self, entry: CacheEntry) -> FeatureCache | None:
        try:
            return FeatureCache.open(entry.path)
        except (CacheDamaged, CacheForeign, CacheNotFound) as error:
            self._warn(f"{error.message}; its rows do not count")
            return None


def _holds(split: CachedSplit, table: SplitTable) -> bool:
    """Whether a split holds exactly these rows, whatever their targets."""
    return (
        len(split) == len(table)
        and np.array_equal(split.digests, table.digests)
        and np.array_equal(split.encoded_ids, encoded_ids(split.name, table.ids))
    )
