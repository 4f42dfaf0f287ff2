"""Finds images that occur twice: certainly (the same bytes or pixels) or likely (they look alike).

Certain findings are facts. Images with the same bytes, the same pixels, or the same pixels mirrored are one class of
equal images; there is nothing to calibrate. In several splits they are a leak, else duplicates.

Likely findings are judgements: outlines that agree (the lower the cosine of the features, the more they must agree),
or, if the pixels cannot be compared, features that are nearly equal. Each link has its own score, and a group has one
medoid, which each of its members resembles: there are no chains. Where the check cannot tell, it withholds: of images
that are tiny or flat, of large sets of images that resemble one another, and entirely if a large share of all images
would be listed, because then the images are alike and not copies.

Equal or similar images with different labels are questions about the labels. docs/audit.md has the precision and recall
of the thresholds on five kinds of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.pairs import Pairs
from featcache.analysis.pictures import SIDE, Pictures
from featcache.analysis.records import Finding, Link, Section, class_name
from featcache.analysis.table import ImageTable
from featcache.analysis.values import Rows
from featcache.images.options import SPLITS
from featcache.text import human_count

Mask = npt.NDArray[np.bool_]

# With support from features: the least correlation of outlines, and the least sum of correlation and cosine.
LEAST_OUTLINES: Final = 0.75
LEAST_SUM: Final = 1.5
# Outlines alone: a change of colour can change features a lot.
OUTLINES_ALONE: Final = 0.9
# Features alone.
FEATURES_ALONE: Final = 0.99
# More images than this that likely links connect are of one kind, such as crops of one wall, and not copies.
MOST_ALIKE: Final = 10
# The greatest share of all images in likely links, and a number that is allowed in any case.
MOST_SHARE: Final = 0.15
FEW: Final = 20

_CERTAIN: Final = {
    "bytes": "the same bytes",
    "pixels": "the same pixels in other files",
    "mirrored_pixels": "the same pixels, mirrored",
}
_UNREAD: Final = "that cannot be read or that changed"


@dataclass(frozen=True, kw_only=True)
class Match:
    """Two images number `first` and `second` of a table; the other fields are those of `Link`."""

    first: int
    second: int
    how: str
    score: float
    cosine: float | None = None
    outlines: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A central image and its matches, each from it to another image."""

    centre: int
    matches: tuple[Match, ...]

    @property
    def numbers(self) -> Rows:
        """The numbers of its images, the central one first: int64 (n,)."""
        return np.array([self.centre, *(match.second for match in self.matches)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Likely:
    """Likely matches; what was withheld, as sentences."""

    matches: tuple[Match, ...]
    withheld: tuple[str, ...]


def first_of_bytes(digests: npt.NDArray[np.uint8]) -> Rows:
    """For each of (N, d) digests the index of its first occurrence: int64 (N,)."""
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64)[group.reshape(-1)]


# --- certain -----------------------------------------------------------------------------------------------


def equal_images(by_bytes: Rows, pictures: Pictures | None) -> Rows:
    """For each image the first one with the same bytes, pixels or mirrored pixels: int64 (N,).

    Args:
        by_bytes: The first image with the same bytes, int64 (N,).
        pictures: Images whose pixels are compared; None: bytes only.
    """
    if pictures is None or not len(pictures):
        return by_bytes
    count, seen = len(by_bytes), np.flatnonzero(pictures.place >= 0)
    same = seen[first_of_bytes(pictures.either[pictures.place[seen]])]
    # Both relations are equalities, so connected images are equal to each other.
    number = _connect(count, np.concatenate([np.arange(count), seen]), np.concatenate([by_bytes, same]))
    _, first = np.unique(number, return_index=True)
    return np.asarray(first[number], np.int64)


def _connect(count: int, one: Rows, other: Rows) -> Rows:
    """The number of the connected component of each of `count` images: int64 (N,). Links: int64 (P,), (P,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def certain_groups(table: ImageTable, equal: Rows, pictures: Pictures | None) -> list[Group]:
    """The groups of equal images, from the result of `equal_images`, in the order of their first images."""
    members: dict[int, list[int]] = {}
    for number in np.flatnonzero(equal != np.arange(len(equal))).tolist():
        members.setdefault(int(equal[number]), []).append(number)
    return [
        Group(
            centre=first,
            matches=tuple(
                Match(first=first, second=number, how=_how_equal(table, first, number, pictures), score=1.0)
                for number in others
            ),
        )
        for first, others in sorted(members.items())
    ]


def _how_equal(table: ImageTable, first: int, second: int, pictures: Pictures | None) -> str:
    if pictures is None or np.array_equal(table.digests[first], table.digests[second]):
        return "bytes"
    one, other = pictures.digests[pictures.place[[first, second]]]
    return "pixels" if np.array_equal(one, other) else "mirrored_pixels"


# --- likely ------------------------------------------------------------------------------------------------


def likely_matches(pairs: Pairs, pictures: Pictures | None, equal: Rows) -> Likely:
    """Likely matches between images that are not equal, the strongest first, and what was withheld."""
    found = _strongest(_compare(pairs, pictures), equal)
    withheld = list(_not_compared(pictures))
    ends = np.array([(match.first, match.second) for match in found], np.int64).reshape(-1, 2)
    images, alike = len(equal), len(np.unique(ends))
    connected = _connect(images, ends[:, 0], ends[:, 1])
    crowded = np.bincount(connected, minlength=images)[connected] > MOST_ALIKE
    single = [match for match in found if not crowded[match.first]]
    if crowded.any():
        withheld.append(
            f"{int(crowded.sum()):,} images in sets of more than {MOST_ALIKE} that resemble one another, directly or "
            "through others: they are of one kind"
        )
    if alike > max(FEW, MOST_SHARE * images):
        withheld.append(
            f"all likely pairs: {alike:,} of {images:,} images would be listed ({100 * alike / images:.0f} "
            f"%), more than {100 * MOST_SHARE:.0f} %, so these images are alike without being copies"
        )
        single = []
    return Likely(matches=tuple(single), withheld=tuple(withheld))


def _not_compared(pictures: Pictures | None) -> Iterator[str]:
    if pictures is None:
        yield f"the pixels were not compared: only pairs with a cosine of at least {FEATURES_ALONE:g} are listed"
        return
    # What cannot be read is compared by its features, what is too small or too flat not at all.
    flat = int((pictures.flat & ~pictures.tiny).sum())
    for count, why in (
        (int(pictures.tiny.sum()), f"smaller than {SIDE} x {SIDE} pixels"),
        (flat, "without enough contrast"),
    ):
        if count:
            yield f"{human_count(count, 'image')} {why}: their outlines cannot be compared"
    if pictures.unread:
        yield (
            f"{human_count(pictures.unread, 'image')} {_UNREAD}: only pairs with a cosine of at least "
            f"{FEATURES_ALONE:g} are listed"
        )


def _note_on_pixels(pictures: Pictures | None) -> str | None:
    """Of which images only the same bytes are certain, as a sentence; None if the pixels of all were compared."""
    if pictures is None:
        return "the pixels were not compared: only the same bytes are found"
    if pictures.unread:
        return f"{human_count(pictures.unread, 'image')} {_UNREAD}: of these only the same bytes are found"
    return None


def _compare(pairs: Pairs, pictures: Pictures | None) -> Iterator[Match]:
    outlines = np.full((2, len(pairs)), np.nan, np.float32)
    by_features: Mask = np.ones(len(pairs), np.bool_)
    if pictures is not None:
        outlines = np.stack(pictures.correlate(pairs.first, pairs.second))
        by_features = (pictures.place[pairs.first] < 0) | (pictures.place[pairs.second] < 0)
    plain, mirrored = np.nan_to_num(outlines, nan=-1)
    best = np.maximum(plain, mirrored)
    agree = (best >= OUTLINES_ALONE) | ((best >= LEAST_OUTLINES) & (best + pairs.cosine >= LEAST_SUM))
    near = by_features & (pairs.cosine >= FEATURES_ALONE)
    for n in np.flatnonzero(agree | near).tolist():
        cosine = float(pairs.cosine[n])
        yield Match(
            first=int(pairs.first[n]),
            second=int(pairs.second[n]),
            how="features" if near[n] else "mirrored_outlines" if mirrored[n] > plain[n] else "outlines",
            score=min(1.0, cosine if near[n] else float(best[n])),
            cosine=cosine,
            outlines=None if near[n] else float(best[n]),
        )


def _strongest(matches: Iterable[Match], equal: Rows) -> list[Match]:
    """Matches between the first images of each class of equal images: one per pair, the strongest first."""
    found: dict[tuple[int, int], Match] = {}
    for match in sorted(matches, key=lambda one: (-one.score, one.first, one.second)):
        first, second = sorted((int(equal[match.first]), int(equal[match.second])))
        if first != second:
            found.setdefault((first, second), replace(match, first=first, second=second))
    return list(found.values())


def group_matches(matches: Sequence[Match]) -> list[Group]:
    """Groups around medoids: each member matches the medoid directly.

    The image with the highest sum of scores becomes the medoid of its matches; matches within a group are covered, and
    this repeats until all are. An image can be in several groups.
    """
    left = {(match.first, match.second): match for match in matches}
    groups = []
    while left:
        weight: Counter[int] = Counter()
        for match in left.values():
            for number in (match.first, match.second):
                weight[number] += match.score  # type: ignore[assignment]  # sums of floats
        centre = min(weight, key=lambda number: (-weight[number], number))
        own = [match for pair, match in left.items() if centre in pair]
        from_centre = [replace(one, first=centre, second=one.first + one.second - centre) for one in own]
        from_centre.sort(key=lambda one: (-one.score, one.second))
        groups.append(Group(centre=centre, matches=tuple(from_centre)))
        inside = {int(number) for number in groups[-1].numbers}
        left = {pair: match for pair, match in left.items() if not inside.issuperset(pair)}
    return groups


# --- findings ----------------------------------------------------------------------------------------------


def copy_sections(
    table: ImageTable, certain: Sequence[Group], likely: Likely, pictures: Pictures | None, note: str
) -> tuple[Section, ...]:
    """The sections of leaks, duplicates, look-alikes and questions about labels.

    Args:
        table: The images.
        certain: Groups of equal images.
        likely: Likely matches between other images.
        pictures: The images whose pixels were compared; None: bytes only.
        note: How likely matches were searched.
    """
    facts = [_certain_finding(table, group) for group in certain]
    differ: list[Match] = []
    same: list[Match] = []
    for match in likely.matches:
        labels = _labels_of(table, np.array([match.first, match.second]))
        (differ if len(labels) > 1 else same).append(match)
    withheld = "; ".join(likely.withheld) or None
    certain_by = "the same bytes, the same decoded pixels, or the same pixels mirrored: certain"
    only_bytes = _note_on_pixels(pictures)
    return (
        _section("leak", [one for one in facts if one.kind == "leak"], certain_by, only_bytes),
        _section("duplicate", [one for one in facts if one.kind == "duplicate"], certain_by, only_bytes),
        _section("look_alike", [_likely_finding(table, group) for group in group_matches(same)], note, withheld),
        _section(
            "label_question",
            [*_contradictions(table, certain), *(_likely_question(table, match) for match in differ)],
            "images that are the same or look alike, of which at most one label can be right",
            None if withheld is None else f"likely pairs, as for look-alikes: {withheld}",
        ),
    )


def _section(kind: str, findings: Sequence[Finding], note: str, withheld: str | None = None) -> Section:
    return Section(kind=kind, findings=tuple(sorted(findings, key=_severity)), note=note, withheld=withheld)


def _severity(finding: Finding) -> tuple[bool, bool, float, str]:
    """Train and test come before other splits; then different labels; then the strongest."""
    splits = {sample.split for sample in finding.samples}
    labels = {sample.label for sample in finding.samples if sample.label >= 0}
    return (not {"train", "test"} <= splits, len(labels) < 2, -finding.score, finding.samples[0].id)


def _certain_finding(table: ImageTable, group: Group) -> Finding:
    splits = _splits_of(table, group)
    text = f"{_how(group)}: {len(group.numbers)} images in {' and '.join(splits)}"
    labels = _labels_of(table, group.numbers)
    return Finding(
        kind="leak" if len(splits) > 1 else "duplicate",
        samples=table.samples(group.numbers),
        score=1.0,
        reason=text + (f", labelled {' and '.join(labels)}" if len(labels) > 1 else ""),
        links=_links(group),
    )


def _likely_finding(table: ImageTable, group: Group) -> Finding:
    scores = [match.score for match in group.matches]
    size = f"{len(group.numbers)} images" if len(scores) > 1 else "2 images"
    around = f" (each like the first, {min(scores):.2f} to {max(scores):.2f})" if len(scores) > 1 else ""
    return Finding(
        kind="look_alike",
        samples=table.samples(group.numbers),
        score=max(scores),
        reason=f"{_alike(group.matches)}: {size} in {' and '.join(_splits_of(table, group))}{around}",
        links=_links(group),
    )


def _likely_question(table: ImageTable, match: Match) -> Finding:
    group = Group(centre=match.first, matches=(match,))
    return Finding(
        kind="label_question",
        samples=table.samples(group.numbers),
        score=match.score,
        reason=f"{_alike(group.matches)}, but labelled {' and '.join(_labels_of(table, group.numbers))}: two pictures, "
        "or one label is wrong",
        links=_links(group),
    )


def _contradictions(table: ImageTable, certain: Sequence[Group]) -> Iterator[Finding]:
    """Equal images with different values of a target of classes, lists or numbers."""
    for group in certain:
        different = table.different_values(group.numbers)
        if different:
            texts = [
                f"labelled {' and '.join(values)}" if name == table.label_name else f"{name} is {' and '.join(values)}"
                for name, values in different.items()
            ]
            yield Finding(
                kind="label_question",
                samples=table.samples(group.numbers),
                score=1.0,
                reason=f"{_how(group)}, but {'; '.join(texts)}",
                links=_links(group),
            )


def _how(group: Group) -> str:
    hows = {match.how for match in group.matches}
    return " or ".join(text for how, text in _CERTAIN.items() if how in hows)


def _alike(matches: Sequence[Match]) -> str:
    if all(match.how == "features" for match in matches):
        return "features that hardly differ"
    return "alike if mirrored" if all(match.how == "mirrored_outlines" for match in matches) else "alike"


def _splits_of(table: ImageTable, group: Group) -> list[str]:
    names = {table.splits[number] for number in table.split[group.numbers].tolist()}
    return [split for split in SPLITS if split in names]


def _labels_of(table: ImageTable, numbers: Rows) -> list[str]:
    labels = sorted(set(table.labels[numbers].tolist()) - {-1})
    return [class_name(label, table.classes) or "" for label in labels]


def _links(group: Group) -> tuple[Link, ...]:
    return tuple(
        Link(first=0, second=place, how=one.how, score=one.score, cosine=one.cosine, outlines=one.outlines)
        for place, one in enumerate(group.matches, start=1)
    )
