"""`--limit`: which N samples of a split are taken. Balanced, always the same, and contained in every larger N."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from featcache.errors import InvalidOption
from featcache.images.sources import Sample


def select(samples: Sequence[Sample], limit: int | None, select_seed: int = 0) -> list[Sample]:
    """At most `limit` of one split's `samples`, in the order in which they came; None: all of them.

    Taken in turn from every class (by label; unlabelled counts as one), within a class in the order of
    SHA-256("<select_seed>/<id>"). So class sizes differ by at most one until a class is used up, and neither
    the order of `samples` nor other samples of other classes change which of a class come first.
    Raises InvalidOption for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidOption(f"the limit must be at least 1, got {limit}")
    if limit is None or limit >= len(samples):
        return list(samples)
    chosen = {sample.id for _, _, sample in _in_turn(samples, select_seed)[:limit]}
    return [sample for sample in samples if sample.id in chosen]


def _in_turn(samples: Sequence[Sample], select_seed: int) -> list[tuple[int, int, Sample]]:
    """(round, label, sample), sorted by round, then label."""
    of_class: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        of_class[sample.label].append(sample)
    turns = [
        (turn, label, sample)
        for label, members in of_class.items()
        for turn, sample in enumerate(sorted(members, key=lambda member: _rank(member.id, select_seed)))
    ]
    return sorted(turns, key=lambda turn: turn[:2])


def _rank(sample_id: str, select_seed: int) -> bytes:
    return hashlib.sha256(f"{select_seed}/{sample_id}".encode()).digest()
