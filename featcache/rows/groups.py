"""Groups: images that must not be separated, because they show the same patient, scene or object."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, UnknownName

if TYPE_CHECKING:
    from featcache.rows.cuts import SplitRows

_KINDS = ("groups", "classes")
_NAMED = 3

Codes = NDArray[np.int64]


def group_codes(cache: FeatureCache, split: str, group: str) -> Codes:
    """The group of each row of a split: int64 (N,); -1 for a row without a group.

    Raises:
        UnknownName: The cache has no such target.
        HeadError: The target holds neither groups nor classes.
    """
    known = cache.targets
    if group not in known:
        raise UnknownName("group", group, [name for name, column in known.items() if column.kind in _KINDS])
    if known[group].kind not in _KINDS:
        raise HeadError(
            f"{group} holds {known[group].kind}, which are not groups of images",
            hint=f"add it again as groups: `featcache label ... --kind {group}=groups`",
        )
    codes: Codes = cache[split].target(group).values
    return codes


def units_of(codes: Codes) -> Codes:
    """The unit of each row, numbered from 0 without gaps: a unit is a group, or a single row without a group (-1)."""
    known, unit = np.unique(codes, return_inverse=True)
    alone = codes < 0
    if not alone.any():
        return unit
    unit = unit - 1
    unit[alone] = len(known) - 1 + np.arange(np.count_nonzero(alone))
    return unit


def group_overlap_notes(cache: FeatureCache, parts: Mapping[str, SplitRows], group: str | None) -> list[str]:
    """Warnings about groups with images in two of the parts, which can make scores too high.

    Args:
        cache: The cache with the groups.
        parts: The rows of train, val and test.
        group: The target of groups that the split kept together; None for none. All other targets of groups are
            checked too.
    """
    columns = [name for name, column in cache.targets.items() if column.kind == "groups" or name == group]
    return [note for name in columns for note in _overlap_notes(cache, parts, name, kept=name == group)]


def _overlap_notes(cache: FeatureCache, parts: Mapping[str, SplitRows], group: str, *, kept: bool) -> list[str]:
    names, notes = cache.targets[group].names, []
    there = {part: _groups_there(cache, rows, group) for part, rows in parts.items()}
    for one, other in combinations(parts, 2):
        both = np.flatnonzero(there[one] & there[other]).tolist()
        if both:
            shown = ", ".join(names[code] for code in both[:_NAMED]) + (", ..." if both[_NAMED:] else "")
            from_one = parts[one].source == parts[other].source
            advice = f"; --group {group} keeps them together" if from_one and not kept else ""
            notes.append(
                f"{len(both)} groups of {group} are in both {one} and {other} ({shown}): "
                f"scores on {other} may be too high{advice}"
            )
    return notes


def _groups_there(cache: FeatureCache, rows: SplitRows, group: str) -> NDArray[np.bool_]:
    """Whether each group has an image among some rows: bool (groups,)."""
    codes = group_codes(cache, rows.source, group)[rows.rows]
    return np.bincount(codes[codes >= 0], minlength=len(cache.targets[group].names)) > 0
