"""`audit_cache`: runs all checks on one cache and collects their findings.

    digests -> equal bytes;  images -> pictures -> equal pixels;  features -> directions -> pairs -> look-alikes
    directions -> folds -> label errors;  root_directions -> class distances -> outliers
    labels, ids and targets -> splits, balance, groups, numbers

All images are decoded once. Memory is bounded by `directions` and `root_directions` (at most 512 values per image each;
beyond 1 GiB in a temporary file), 16 x 16 pixels and two digests per image, and one block per step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.analysis.copies import (
    FEATURES_ALONE,
    LEAST_OUTLINES,
    LEAST_SUM,
    OUTLINES_ALONE,
    Group,
    certain_groups,
    copy_sections,
    equal_images,
    first_of_bytes,
    group_matches,
    likely_matches,
)
from featcache.analysis.directions import WIDEST, directions, root_directions
from featcache.analysis.label_errors import label_errors
from featcache.analysis.options import AuditOptions
from featcache.analysis.outliers import outliers
from featcache.analysis.pairs import MOST_PAIRS, Pairs, near_pairs
from featcache.analysis.pictures import Pictures
from featcache.analysis.records import KINDS, Audit
from featcache.analysis.split_checks import balance_section, counts, missing_labels_section, split_section
from featcache.analysis.table import ImageTable
from featcache.analysis.target_checks import target_sections
from featcache.analysis.values import Rows
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.images.source import ImageSource
from featcache.progress import StageProgress, stage_progress
from featcache.text import human_count


@accepts(AuditOptions)
def audit_cache(
    cache: FeatureCache,
    *,
    source: ImageSource | None = None,
    device: str = "cpu",
    workers: int = 2,
    progress: StageProgress | bool | None = None,
    **options: Any,
) -> Audit:
    """Find leaks, duplicates, label errors, outliers and problems of the splits and targets in a cache.

    The cache is only read.

    Args:
        cache: An open cache.
        source: The images from which the cache was made. Without them only the same bytes are certain, and look-alikes
            are those whose features hardly differ.
        device: The torch device that computes the cosines, such as "cpu" or "cuda".
        workers: Threads that decode images.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, steps done, steps in all).
        {options}

    Returns:
        The findings, one section per kind, the most serious kind first, with what was withheld and why.

    Raises:
        UnknownName: The cache has no such layer.
        HeadError: A feature is NaN or infinite.
        CacheDamaged: Rows are not those that were written.
    """
    own = ("cache", "source", "device", "workers", "progress")
    what = AuditOptions(**divide_options(options, "audit_cache", AuditOptions, also=own)[0])
    with stage_progress(progress) as advance:
        return _audit(cache, what, source=source, device=device, workers=workers, progress=advance)


def _audit(
    cache: FeatureCache,
    what: AuditOptions,
    *,
    source: ImageSource | None,
    device: str,
    workers: int,
    progress: StageProgress,
) -> Audit:
    """`audit_cache`, with a function that is called with the progress."""
    began = time.perf_counter()
    table, seed = ImageTable.of(cache, what.layer), what.seed
    rows = directions(table, seed=seed, progress=progress)
    by_bytes = first_of_bytes(table.digests)
    pairs = near_pairs(rows, device=device, progress=progress)
    pairs = pairs.where(by_bytes[pairs.first] != by_bytes[pairs.second])
    pictures = None if source is None else _read_pictures(source, table, by_bytes, workers, progress)
    equal = equal_images(by_bytes, pictures)
    certain, likely = certain_groups(table, equal, pictures), likely_matches(pairs, pictures, equal)
    together = _group_numbers(equal, group_matches(likely.matches))
    images = counts(table)
    sections = [
        *copy_sections(table, certain, likely, pictures, _method_note(table, pairs, pictures)),
        label_errors(table, rows, groups=together, seed=seed, progress=progress),
        outliers(table, root_directions(table, seed=seed, progress=progress)),
        split_section(table, rows, seed=seed),
        missing_labels_section(table),
        *target_sections(table),
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
    source: ImageSource, table: ImageTable, by_bytes: Rows, workers: int, progress: StageProgress | None
) -> Pictures:
    """All images, one of several with equal bytes: equal pixels must not depend on what a network sees in them."""
    copies: dict[int, list[int]] = {}
    for number in np.flatnonzero(by_bytes != np.arange(len(by_bytes))).tolist():
        copies.setdefault(int(by_bytes[number]), []).append(number)
    pictures = Pictures.read(source, table, np.unique(by_bytes), copies=copies, workers=workers, progress=progress)
    return pictures.with_equal_bytes(by_bytes)


def _method_note(table: ImageTable, pairs: Pairs, pictures: Pictures | None) -> str:
    reduced = f", of {table.feature_dim:,} features projected to {WIDEST}" if table.feature_dim > WIDEST else ""
    cut = f" (the nearest {MOST_PAIRS} of each of {human_count(pairs.cut, 'image')} with more)" if pairs.cut else ""
    where = f"a cosine of at least {pairs.floor:.2f} in {table.layer}{reduced}"
    compared = f"of {len(pairs):,} pairs with {where}{cut}, those "
    if pictures is None or not len(pictures):
        return f"{compared}of at least {FEATURES_ALONE:g}: the images were not compared"
    return (
        f"{compared}whose outlines agree: correlation at least {LEAST_OUTLINES:g} and with the cosine {LEAST_SUM:g}, "
        f"or {OUTLINES_ALONE:g} by itself; {len(pictures):,} images were looked at"
    )


def _group_numbers(equal: Rows, groups: Sequence[Group]) -> Rows:
    """A number that equal images, and those of a group, share: int64 (N,)."""
    numbers = equal.copy()
    for group in groups:
        numbers[group.numbers] = numbers[group.centre]
    return numbers[equal]
