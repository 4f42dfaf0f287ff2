"""Checks of the targets of a cache: groups in several splits, targets with a single value, and numbers far away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from featcache.analysis.records import Finding, Section
from featcache.analysis.table import ImageTable
from featcache.cache.targets import Target
from featcache.text import human_count

# Tukey's outer fence (1977): this many interquartile ranges beyond a quartile.
FAR: Final = 3.0
LEAST_NUMBERS: Final = 20


def target_sections(table: ImageTable) -> tuple[Section, ...]:
    """The sections of groups in several splits, of targets with one value, and of far numbers."""
    groups = [target for target in table.targets.values() if target.kind == "groups"]
    numbers = [target for target in table.targets.values() if target.kind == "numbers"]
    few = [target for target in numbers if target.has_value.sum() < LEAST_NUMBERS]
    return (
        Section(
            kind="group_leak",
            findings=_worst_first(finding for target in groups for finding in _groups_in_splits(table, target)),
            note="; ".join(_about_groups(target) for target in groups) or "the cache has no target of groups",
        ),
        Section(
            kind="constant_target",
            findings=_worst_first(finding for target in table.targets.values() for finding in _constant(target)),
            note=f"the {human_count(len(table.targets), 'target')} of the cache",
        ),
        Section(
            kind="far_number",
            findings=_worst_first(finding for target in numbers for finding in _far(table, target)),
            note=f"numbers more than {FAR:g} interquartile ranges beyond a quartile, Tukey's outer fence"
            if numbers
            else "the cache has no target of numbers",
            withheld="; ".join(
                f"{target.name}: too few, {human_count(int(target.has_value.sum()), 'number')}; "
                f"it takes {LEAST_NUMBERS}"
                for target in few
            )
            or None,
        ),
    )


def _worst_first(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: -finding.score))


def _about_groups(target: Target) -> str:
    without = f", {target.unlabelled:,} images without one" if target.unlabelled else ""
    return f"{target.name}: {human_count(len(np.unique(target.values[target.has_value])), 'group')}{without}"


def _groups_in_splits(table: ImageTable, target: Target) -> Iterator[Finding]:
    there = np.flatnonzero(target.has_value)
    pairs = np.unique(np.stack([target.values[there], table.split[there]]), axis=1)
    codes, splits = np.unique(pairs[0], return_counts=True)
    # One stable sort instead of one search per group.
    order = there[np.argsort(target.values[there], kind="stable")]
    sorted_codes = target.values[order]
    for code in codes[splits > 1]:
        start, end = np.searchsorted(sorted_codes, [code, code + 1])
        images = order[start:end]
        sizes = np.bincount(table.split[images], minlength=len(table.splits))
        shown = " and ".join(f"{size:,} in {table.splits[n]}" for n, size in enumerate(sizes.tolist()) if size)
        yield Finding(
            kind="group_leak",
            samples=table.samples(images),
            score=float(1 - sizes.max() / sizes.sum()),
            reason=f"{target.name} {target.names[int(code)]}: {len(images):,} images, {shown}",
        )


def _constant(target: Target) -> Iterator[Finding]:
    values = target.values[target.has_value]
    if len(values) > 1 and (values == values[0]).all():
        value = target.at(np.flatnonzero(target.has_value)[:1]).decode()[0]
        text = ";".join(value) or "no class" if isinstance(value, tuple) else value
        yield Finding(
            kind="constant_target",
            score=len(values) / len(target),
            reason=f"{target.name} is {text} for all {len(values):,} images that have a value: nothing can be learned",
        )


def _far(table: ImageTable, target: Target) -> Iterator[Finding]:
    there = np.flatnonzero(target.has_value)
    if len(there) < LEAST_NUMBERS:
        return
    values = target.values[there]
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    reach = FAR * (high - low)
    # If half of all numbers are equal, the quartiles say nothing about the others.
    if reach == 0:
        return
    beyond = np.maximum(low - reach - values, values - high - reach)
    for n in np.flatnonzero(beyond > 0):
        yield Finding(
            kind="far_number",
            samples=table.samples(there[[n]]),
            score=float(beyond[n] / (beyond[n] + reach)),
            reason=f"{target.name} is {values[n]:g}; half of all numbers are from {low:g} to {high:g}, the median is "
            f"{middle:g}",
        )
