"""Finds pictures that occur twice: in several splits (a leak, which inflates test accuracy) or within one split.

Three kinds of evidence, each sufficient by itself:
    exact       the images' bytes have the same digest
    pixels      if the images can be read: their outlines agree; the lower the cosine, the more they must agree
    features    if they cannot be read: a cosine that different pictures rarely reach
Linked images form one finding, with the strongest links that connect them. docs/audit.md shows how the thresholds were
found on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.pairs import Pairs
from featcache.analysis.pictures import Pictures
from featcache.analysis.records import Finding, Link, class_name
from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.images.options import SPLITS
from featcache.images.samples import Sample

Mask = npt.NDArray[np.bool_]

# With support from features: the least correlation + cosine, and the least correlation.
LEAST_SUM: Final = 1.5
LEAST_OUTLINES: Final = 0.6
# Outlines alone: a change of colour can change features a lot.
OUTLINES_ALONE: Final = 0.88
# Features alone.
FEATURES_ALONE: Final = 0.9

_PHRASES: Final = {
    "exact": "the same bytes",
    "copy": "pixels that agree",
    "mirrored": "pixels that agree mirrored",
    "features": "features that hardly differ",
}


@dataclass(frozen=True, kw_only=True)
class Match:
    """Images number `first` < `second` of a table show the same picture.

    `strength` is the sort key of matches, the strongest first; the other fields are those of `Link`.
    """

    first: int
    second: int
    how: str
    cosine: float
    pixels: float | None
    strength: float


def first_of_bytes(digests: npt.NDArray[np.uint8]) -> Rows:
    """For each of (N, 32) digests the index of its first occurrence: int64 (N,)."""
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64)[group.reshape(-1)]


def same_bytes(first: Rows) -> list[Match]:
    """One match for each image with the digest of an earlier image; `first` is the result of `first_of_bytes`."""
    return [
        Match(first=int(first[n]), second=int(n), how="exact", cosine=1.0, pixels=None, strength=1.0)
        for n in np.flatnonzero(first != np.arange(len(first)))
    ]


def same_pictures(pairs: Pairs, pictures: Pictures | None) -> list[Match]:
    """Matches for the pairs (of images with different bytes) that show the same picture."""
    outlines = np.full((2, len(pairs)), np.nan, np.float32)
    if pictures is not None:
        outlines = np.stack(pictures.correlate(pairs.first, pairs.second))
    seen: Mask = ~np.isnan(outlines[0] + outlines[1])
    plain, mirrored = np.nan_to_num(outlines, nan=-1)
    best = np.maximum(plain, mirrored)
    how = np.where(~seen, "features", np.where(mirrored > plain, "mirrored", "copy"))
    matched = np.where(seen, _agree(best, pairs.cosine), pairs.cosine >= FEATURES_ALONE)
    strength = np.where(seen, (best + pairs.cosine) / 2, pairs.cosine)
    return [
        Match(
            first=int(pairs.first[n]),
            second=int(pairs.second[n]),
            how=str(how[n]),
            cosine=float(pairs.cosine[n]),
            pixels=float(best[n]) if seen[n] else None,
            strength=float(strength[n]),
        )
        for n in np.flatnonzero(matched)
    ]


def _agree(outlines: npt.NDArray[np.float32], cosine: npt.NDArray[np.float32]) -> Mask:
    supported = (outlines >= LEAST_OUTLINES) & (outlines + cosine >= LEAST_SUM)
    return supported | (outlines >= OUTLINES_ALONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Images that show one picture: `numbers` ascending, and the matches that connect them, the strongest first."""

    numbers: Rows
    matches: tuple[Match, ...]


def group_matches(count: int, matches: Sequence[Match]) -> list[Group]:
    """Groups of connected images among `count` images; each keeps its strongest matches (Kruskal's algorithm)."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    joining: list[Match] = []
    for match in sorted(matches, key=lambda one: (-one.strength, one.first, one.second)):
        one, other = root(match.first), root(match.second)
        if one != other:
            parent[max(one, other)] = min(one, other)
            joining.append(match)
    of_root: dict[int, list[Match]] = {}
    for match in joining:
        of_root.setdefault(root(match.first), []).append(match)
    return [
        Group(numbers=np.unique([n for match in some for n in (match.first, match.second)]), matches=tuple(some))
        for some in of_root.values()
    ]


def duplicate_findings(table: ImageTable, groups: Sequence[Group]) -> tuple[list[Finding], list[Finding]]:
    """Leaks and duplicates within a split, the worst first.

    Leaks between train and test come before others; then those whose images have different labels; then the
    strongest.
    """
    findings = [_finding(table, group) for group in groups]
    leaks = [finding for finding in findings if finding.kind == "leak"]
    within = [finding for finding in findings if finding.kind == "duplicate"]
    return sorted(leaks, key=_severity), sorted(within, key=_severity)


def _severity(finding: Finding) -> tuple[bool, bool, float, str]:
    splits = {sample.split for sample in finding.samples}
    return (
        not {"train", "test"} <= splits,
        len(_labels(finding.samples)) < 2,
        -finding.score,
        finding.samples[0].id,
    )


def _finding(table: ImageTable, group: Group) -> Finding:
    samples = table.samples(group.numbers)
    splits = [split for split in SPLITS if any(sample.split == split for sample in samples)]
    place = {int(number): index for index, number in enumerate(group.numbers)}
    links = tuple(
        Link(first=place[one.first], second=place[one.second], how=one.how, cosine=one.cosine, pixels=one.pixels)
        for one in group.matches
    )
    return Finding(
        kind="leak" if len(splits) > 1 else "duplicate",
        samples=samples,
        score=min(1.0, max(match.strength for match in group.matches)),
        reason=", ".join(_reasons(samples, splits, links, table.classes)),
        links=links,
    )


def _reasons(
    samples: Sequence[Sample], splits: Sequence[str], links: Sequence[Link], classes: Sequence[str]
) -> Iterator[str]:
    hows = [how for how in _PHRASES if any(link.how == how for link in links)]
    yield " or ".join(_PHRASES[how] for how in hows) + f": {len(samples)} images in {' and '.join(splits)}"
    labels = _labels(samples)
    if len(labels) > 1:
        yield "labelled " + " and ".join(class_name(label, classes) or "" for label in labels)


def _labels(samples: Sequence[Sample]) -> list[int]:
    return sorted({sample.label for sample in samples if sample.label >= 0})
