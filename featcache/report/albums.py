"""The images that runs were judged on, found again in their caches: what their rows, labels and files are now.

Runs that judged the same images share an album, also where their features are others; a site is one cache that has
the album's images. A page has room for some thousand images, so of a larger part some are chosen: every run's worst
mistakes, and the rest evenly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.cache.catalog import places_of
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Spec
from featcache.errors import CacheError, CacheNotFound
from featcache.report.subjects import Subject
from featcache.runs.run import Run

MOST_IMAGES = 10_000
"""Images on a page, all albums together."""

MOST_MISTAKES = 60
"""The most confident mistakes of each run, which are always among them."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """The cache that `subjects` were trained on, and where it has their images.

    `cache`: its path, None where it is gone. `split`, `rows` int64 (n,): the images' rows, -1 for those that it no
    longer has. `images`: what tells these images from others. `notes`: what has changed since.
    """

    subjects: tuple[Subject, ...]
    cache: Path | None
    split: str
    rows: Rows
    images: str
    notes: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """The layers that the subjects' heads read."""
        return [layer.name for layer in self.subjects[0].run.features.layers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Album:
    """The images that some subjects were judged on: n are shown, at `shown` int64 (n,) among their predictions.

    `sites`: a cache each; their rows are those of the images shown.
    """

    shown: Rows
    sites: tuple[Site, ...]
    notes: tuple[str, ...]

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The runs that judged these images."""
        return tuple(one for site in self.sites for one in site.subjects)

    @property
    def ids(self) -> list[str]:
        """The names of the images shown."""
        names = self.subjects[0].said.ids
        return [names[row] for row in self.shown.tolist()]

    @property
    def labels(self) -> Rows:
        """Their labels, as the runs knew them: int64 (n,)."""
        found: Rows = self.subjects[0].said.targets[self.shown]
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, as the runs knew them."""
        return self.subjects[0].run.classes


def albums_of(subjects: Sequence[Subject], features_dir: Path) -> list[Album]:
    """The albums of some runs, in the order of their first."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in _sites(subjects, features_dir):
        first = site.subjects[0]
        groups.setdefault((*_judged(first), first.run.classes, site.images), []).append(site)
    return [_album(group, MOST_IMAGES // len(groups)) for group in groups.values()]


def _judged(subject: Subject) -> tuple[object, ...]:
    return subject.part, subject.said.ids, subject.said.targets.tobytes()


def _sites(subjects: Sequence[Subject], features_dir: Path) -> list[Site]:
    groups: dict[tuple[object, ...], list[Subject]] = {}
    for one in subjects:
        origin = one.run.features
        groups.setdefault((origin.cache, origin.spec, origin.layers, *_judged(one)), []).append(one)
    return [_site(tuple(group), features_dir) for group in groups.values()]


def _site(subjects: tuple[Subject, ...], features_dir: Path) -> Site:
    first = subjects[0]
    path, why = cache_of(first.run, features_dir)
    nowhere = Site(
        subjects=subjects,
        cache=path,
        split=first.part,
        rows=np.full(len(first.said.ids), -1, np.int64),
        images=first.run.features.cache_name,
        notes=(why,) if why else (),
    )
    if path is None:
        return nowhere
    with FeatureCache.open(path) as cache:
        return _found(nowhere, cache, first)


def cache_of(run: Run, features_dir: Path) -> tuple[Path | None, str]:
    """Where the cache of a run is now: where it was, or in `features_dir`. Else None, and why not."""
    why = f"The cache {run.features.cache_name} is gone"
    for path in places_of(Path(run.features.cache), features_dir):
        try:
            with FeatureCache.open(path) as cache:
                if _holds_its_features(cache, run):
                    return path, ""
                why = f"Under the name {run.features.cache_name} lies a cache of other features now"
        except CacheNotFound:
            continue
        except CacheError as error:
            why = f"The cache {run.features.cache_name} cannot be used ({error.message})"
    return None, f"{why}: its runs have no map, and no pictures of their images."


def _holds_its_features(cache: FeatureCache, run: Run) -> bool:
    names = [layer.name for layer in run.features.layers]
    then = Spec.from_json(run.features.spec)
    return set(names) <= set(cache.layers) and cache.spec.restricted_to(names) == then.restricted_to(names)


def _found(site: Site, cache: FeatureCache, subject: Subject) -> Site:
    # Val is a split of its own, or was cut from train.
    split = subject.part if subject.part in cache else "train"
    if split not in cache:
        return replace(site, cache=None, notes=(f"The cache {cache.name} has no {subject.part} images any more.",))
    place = {name: row for row, name in enumerate(cache[split].ids)}
    rows = np.array([place.get(name, -1) for name in subject.said.ids], np.int64)
    digests = cache[split].digests[rows[rows >= 0]]
    return replace(
        site,
        split=split,
        rows=rows,
        images=hashlib.sha256(digests.tobytes()).hexdigest(),
        notes=tuple(_changes(cache, split, rows, subject)),
    )


def _changes(cache: FeatureCache, split: str, rows: Rows, subject: Subject) -> list[str]:
    notes = []
    there = rows >= 0
    if not there.all():
        notes.append(f"{int((~there).sum()):,} of {len(rows):,} images are no longer in the cache {cache.name}.")
    (name,) = subject.run.target.columns
    column = cache.targets.get(name)
    names = () if column is None or column.kind != "classes" else column.names
    if names != subject.run.classes:
        notes.append(
            f"The cache {cache.name} has other classes now ({_few(names)}) than its runs were trained on "
            f"({_few(subject.run.classes)}): labels are shown as the runs knew them."
        )
        return notes
    relabelled = int((cache[split].target(name).values[rows[there]] != subject.said.targets[there]).sum())
    if relabelled:
        notes.append(
            f"{relabelled:,} images have another label in the cache {cache.name} now: "
            "labels are shown as the runs knew them."
        )
    return notes


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")


def _album(sites: Sequence[Site], most: int) -> Album:
    subjects = [one for site in sites for one in site.subjects]
    shown, images = _chosen(subjects, most), len(subjects[0].said.ids)
    thinned = [] if len(shown) == images else [_thinned(len(shown), images, subjects[0].part)]
    return Album(
        shown=shown,
        sites=tuple(replace(site, rows=site.rows[shown]) for site in sites),
        notes=tuple(dict.fromkeys([*thinned, *(note for site in sites for note in site.notes)])),
    )


def _thinned(shown: int, of: int, part: str) -> str:
    return (
        f"{shown:,} of {of:,} {part} images are shown: the most confident mistakes, and others evenly. "
        "All numbers and tables count every image."
    )


def _chosen(subjects: Sequence[Subject], most: int) -> Rows:
    """Positions of the images to show, ascending."""
    everything: Rows = np.arange(len(subjects[0].said.targets))
    if len(everything) <= most:
        return everything
    worst = np.unique(np.concatenate([worst_mistakes(one)[: most // len(subjects)] for one in subjects]))
    others = np.setdiff1d(everything, worst)
    evenly = others[np.linspace(0, len(others) - 1, most - len(worst)).astype(np.int64)]
    return np.union1d(worst, evenly)


def worst_mistakes(subject: Subject) -> Rows:
    """Positions of the images that a run is surest of and wrong about, the surest first."""
    sure = np.where(subject.answers == subject.said.targets, -1.0, subject.confidences)
    order: Rows = np.argsort(-sure, kind="stable")[:MOST_MISTAKES]
    return order[sure[order] >= 0]
