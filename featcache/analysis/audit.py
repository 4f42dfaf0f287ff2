"""`audit_cache`: everything that is looked for, in one walk over a cache.

    features -> directions -> pairs -> pictures -> leaks and duplicates;  -> folds -> label errors
             -> compositions -> class distances -> outliers;  labels and ids -> splits, balance

Memory stays at directions and compositions (512 values an image each; beyond 1 GiB in a temporary file) and a block of
each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from featcache.analysis.directions import WIDEST, compositions, directions
from featcache.analysis.duplicates import (
    FEATURES_ALONE,
    LEAST_OUTLINES,
    LEAST_SUM,
    OUTLINES_ALONE,
    Group,
    duplicate_findings,
    first_of_bytes,
    grouped,
    same_bytes,
    same_pictures,
)
from featcache.analysis.label_errors import label_errors
from featcache.analysis.makeup import balance_section, counts, split_section, unlabelled_section
from featcache.analysis.outliers import outliers
from featcache.analysis.pairs import Pairs, near_pairs
from featcache.analysis.pictures import Pictures
from featcache.analysis.records import KINDS, Audit, Section
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.cache.reader import FeatureCache
from featcache.images.source import ImageSource

Progress = Callable[[str, int, int], None]


def audit_cache(
    cache: FeatureCache,
    *,
    layer: str | None = None,
    source: ImageSource | None = None,
    device: str = "cpu",
    workers: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """What stands in a cache that should not.

    `layer`: whose features are used (None: the first). `source`: the images the cache was made from; without it, near
    duplicates are found by their features alone, which finds fewer. `device`: where torch multiplies. `workers`:
    threads that decode images. `progress` is called with (stage, images done, images in all).

    Raises UnknownName for another layer, HeadError for features that are not finite, CacheDamaged for rows that are not
    those that were written.
    """
    began = time.perf_counter()
    table = ImageTable.of(cache, layer)
    rows = directions(table, seed=seed, progress=progress)
    first = first_of_bytes(table.digests)
    pairs = near_pairs(rows, device=device, progress=progress)
    pairs = pairs.where(first[pairs.first] != first[pairs.second])
    pictures = None if source is None else _pictures(source, table, pairs, workers, progress)
    groups = grouped(len(table), [*same_bytes(first), *same_pictures(pairs, pictures)])
    found = counts(table)
    sections = [
        *_twice(table, groups, pairs, pictures),
        label_errors(table, rows, groups=_group_numbers(len(table), groups), seed=seed, progress=progress),
        outliers(table, compositions(table, seed=seed, progress=progress)),
        split_section(table, rows, seed=seed),
        unlabelled_section(table),
        balance_section(found),
    ]
    order = list(KINDS)
    return Audit(
        cache=cache.name,
        layer=table.layer,
        classes=table.classes,
        counts=found,
        sections=tuple(sorted(sections, key=lambda section: order.index(section.kind))),
        seconds=time.perf_counter() - began,
    )


def _pictures(
    source: ImageSource, table: ImageTable, pairs: Pairs, workers: int, progress: Progress | None
) -> Pictures:
    wanted = np.unique(np.concatenate([pairs.first, pairs.second]))
    return Pictures.read(source, table, wanted, workers=workers, progress=progress)


def _twice(
    table: ImageTable, groups: Sequence[Group], pairs: Pairs, pictures: Pictures | None
) -> tuple[Section, Section]:
    leaks, within = duplicate_findings(table, groups)
    return (
        Section(kind="leak", findings=tuple(leaks), note=_how(table, pairs, pictures)),
        Section(kind="duplicate", findings=tuple(within), note="found as leaks are"),
    )


def _how(table: ImageTable, pairs: Pairs, pictures: Pictures | None) -> str:
    reduced = f", of {table.feature_dim:,} features projected to {WIDEST}" if table.feature_dim > WIDEST else ""
    compared = f"same bytes; of {len(pairs):,} pairs with a cosine of at least {pairs.floor:.2f}{reduced}, those "
    if pictures is None or not len(pictures):
        return f"{compared}of at least {FEATURES_ALONE:g}: the images were not compared"
    return (
        f"{compared}whose outlines agree: correlation at least {LEAST_OUTLINES:g} and with the cosine {LEAST_SUM:g}, "
        f"or {OUTLINES_ALONE:g} by itself; {len(pictures):,} images were looked at"
    )


def _group_numbers(count: int, groups: Sequence[Group]) -> Rows:
    """The lowest number of each image's group, its own where it stands alone: int64 (count,)."""
    numbers = np.arange(count)
    for group in groups:
        numbers[group.numbers] = group.numbers[0]
    return numbers
