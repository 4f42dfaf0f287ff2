"""`audit_cache`: runs all checks on one cache and collects their findings.

    features -> directions -> pairs -> pictures -> leaks and duplicates;  -> folds -> label errors
             -> root_directions -> class distances -> outliers;  labels and ids -> splits, balance

Memory is bounded by `directions` and `root_directions` (at most 512 values per image each; beyond 1 GiB in a temporary
file) and one block per step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.analysis.directions import WIDEST, directions, root_directions
from featcache.analysis.duplicates import (
    FEATURES_ALONE,
    LEAST_OUTLINES,
    LEAST_SUM,
    OUTLINES_ALONE,
    Group,
    duplicate_findings,
    first_of_bytes,
    group_matches,
    same_bytes,
    same_pictures,
)
from featcache.analysis.label_errors import label_errors
from featcache.analysis.options import AuditOptions
from featcache.analysis.outliers import outliers
from featcache.analysis.pairs import Pairs, near_pairs
from featcache.analysis.pictures import Pictures
from featcache.analysis.records import KINDS, Audit, Section
from featcache.analysis.split_checks import balance_section, counts, missing_labels_section, split_section
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.images.source import ImageSource
from featcache.progress import StageProgress


@accepts(AuditOptions)
def audit_cache(
    cache: FeatureCache,
    *,
    source: ImageSource | None = None,
    device: str = "cpu",
    workers: int = 2,
    progress: StageProgress | None = None,
    **options: Any,
) -> Audit:
    """Find leaks, duplicates, label errors, outliers and problems of the splits in a cache.

    The cache is only read.

    Args:
        cache: An open cache.
        source: The images from which the cache was made. Without them, near duplicates are found by their features
            alone, which finds fewer.
        device: The torch device that computes the cosines, such as "cpu" or "cuda".
        workers: Threads that decode images.
        progress: Called with (stage, steps done, steps in all).
        {options}

    Returns:
        The findings, one section per kind, the most serious kind first.

    Raises:
        UnknownName: The cache has no such layer.
        HeadError: A feature is NaN or infinite.
        CacheDamaged: Rows are not those that were written.
    """
    began = time.perf_counter()
    own = ("cache", "source", "device", "workers", "progress")
    what = AuditOptions(**divide_options(options, "audit_cache", AuditOptions, also=own)[0])
    table, seed = ImageTable.of(cache, what.layer), what.seed
    rows = directions(table, seed=seed, progress=progress)
    first = first_of_bytes(table.digests)
    pairs = near_pairs(rows, device=device, progress=progress)
    pairs = pairs.where(first[pairs.first] != first[pairs.second])
    pictures = None if source is None else _read_pictures(source, table, pairs, workers, progress)
    groups = group_matches(len(table), [*same_bytes(first), *same_pictures(pairs, pictures)])
    images = counts(table)
    sections = [
        *_duplicate_sections(table, groups, pairs, pictures),
        label_errors(table, rows, groups=_group_numbers(len(table), groups), seed=seed, progress=progress),
        outliers(table, root_directions(table, seed=seed, progress=progress)),
        split_section(table, rows, seed=seed),
        missing_labels_section(table),
        balance_section(images),
    ]
    order = list(KINDS)
    return Audit(
        cache=cache.name,
        layer=table.layer,
        classes=table.classes,
        counts=images,
        sections=tuple(sorted(sections, key=lambda section: order.index(section.kind))),
        seconds=time.perf_counter() - began,
    )


def _read_pictures(
    source: ImageSource, table: ImageTable, pairs: Pairs, workers: int, progress: StageProgress | None
) -> Pictures:
    wanted = np.unique(np.concatenate([pairs.first, pairs.second]))
    return Pictures.read(source, table, wanted, workers=workers, progress=progress)


def _duplicate_sections(
    table: ImageTable, groups: Sequence[Group], pairs: Pairs, pictures: Pictures | None
) -> tuple[Section, Section]:
    leaks, within = duplicate_findings(table, groups)
    return (
        Section(kind="leak", findings=tuple(leaks), note=_method_note(table, pairs, pictures)),
        Section(kind="duplicate", findings=tuple(within), note="found in the same way as leaks"),
    )


def _method_note(table: ImageTable, pairs: Pairs, pictures: Pictures | None) -> str:
    reduced = f", of {table.feature_dim:,} features projected to {WIDEST}" if table.feature_dim > WIDEST else ""
    compared = f"same bytes; of {len(pairs):,} pairs with a cosine of at least {pairs.floor:.2f}{reduced}, those "
    if pictures is None or not len(pictures):
        return f"{compared}of at least {FEATURES_ALONE:g}: the images were not compared"
    return (
        f"{compared}whose outlines agree: correlation at least {LEAST_OUTLINES:g} and with the cosine {LEAST_SUM:g}, "
        f"or {OUTLINES_ALONE:g} by itself; {len(pictures):,} images were looked at"
    )


def _group_numbers(count: int, groups: Sequence[Group]) -> Rows:
    """The lowest image number in each image's group, its own number without a group: int64 (count,)."""
    numbers = np.arange(count)
    for group in groups:
        numbers[group.numbers] = group.numbers[0]
    return numbers
