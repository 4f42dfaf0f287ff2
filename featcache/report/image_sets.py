"""Groups runs by the images on which they were evaluated, and locates these images in the caches.

Runs with the same evaluation images share an image set, even if their features differ. A page can show some thousand
images, so a larger set is reduced: to the worst mistakes of every run, and evenly spaced other images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.catalog import places_of
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Spec
from featcache.errors import CacheError, CacheNotFound, FeatcacheError
from featcache.report.run_results import RunResult
from featcache.rows.target import HeadTarget, head_target, read_targets
from featcache.runs.run import Run

MOST_IMAGES = 10_000
"""The most images on a page, in all image sets together."""

MOST_MISTAKES = 60
"""The number of worst mistakes of each run that are always shown."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedImages:
    """The cache on which the runs of `results` were trained, and the rows of their images in it.

    `cache`: its path, None if it is missing. `split` and `rows`, int64 (n,): where the images are in the cache, row -1
    for images that it no longer has. `images`: a key that is equal for equal images. `notes`: what has changed since.
    """

    results: tuple[RunResult, ...]
    cache: Path | None
    split: str
    rows: Rows
    images: str
    notes: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """The layers that the heads of `results` read."""
        return [layer.name for layer in self.results[0].run.features.layers]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images on which some runs were evaluated, as far as they are shown.

    `shown`: int64 (n,), the positions of the shown images among the predictions. `caches`: every cache that has these
    images; its rows are those of the shown images.
    """

    shown: Rows
    caches: tuple[CachedImages, ...]
    notes: tuple[str, ...]

    @property
    def results(self) -> tuple[RunResult, ...]:
        """The runs that were evaluated on these images."""
        return tuple(one for cached in self.caches for one in cached.results)

    @property
    def ids(self) -> list[str]:
        """The ids of the shown images."""
        names = self.results[0].predictions.ids
        return [names[row] for row in self.shown.tolist()]

    @property
    def target(self) -> HeadTarget:
        """What the runs predict."""
        return self.results[0].target

    @property
    def targets(self) -> NDArray[Any]:
        """The targets of the shown images at training time: (n,) or (n, C), as in `Predictions`."""
        targets: NDArray[Any] = self.results[0].predictions.targets[self.shown]
        return targets


def image_sets_of(results: Sequence[RunResult], features_dir: Path) -> list[ImageSet]:
    """The image sets of some runs, in the order of the first run of each."""
    groups: dict[tuple[object, ...], list[CachedImages]] = {}
    for cached in _locate_all(results, features_dir):
        first = cached.results[0]
        groups.setdefault((*_images_key(first), first.target, cached.images), []).append(cached)
    return [_image_set(group, MOST_IMAGES // len(groups)) for group in groups.values()]


def _images_key(result: RunResult) -> tuple[object, ...]:
    return result.part, result.predictions.ids, result.predictions.targets.tobytes()


def _locate_all(results: Sequence[RunResult], features_dir: Path) -> list[CachedImages]:
    groups: dict[tuple[object, ...], list[RunResult]] = {}
    for one in results:
        origin = one.run.features
        groups.setdefault((origin.cache, origin.spec, origin.layers, *_images_key(one)), []).append(one)
    return [_locate(tuple(group), features_dir) for group in groups.values()]


def _locate(results: tuple[RunResult, ...], features_dir: Path) -> CachedImages:
    first = results[0]
    path, why = cache_of(first.run, features_dir)
    absent = CachedImages(
        results=results,
        cache=path,
        split=first.part,
        rows=np.full(len(first.predictions.ids), -1, np.int64),
        images=first.run.features.cache_name,
        notes=(why,) if why else (),
    )
    if path is None:
        return absent
    with FeatureCache.open(path) as cache:
        return _locate_in(absent, cache, first)


def cache_of(run: Run, features_dir: Path) -> tuple[Path | None, str]:
    """Find the cache of a run at its recorded path or in `features_dir`: the path and "", or None and the reason."""
    why = f"The cache {run.features.cache_name} is missing"
    for path in places_of(Path(run.features.cache), features_dir):
        try:
            with FeatureCache.open(path) as cache:
                if _holds_its_features(cache, run):
                    return path, ""
                why = f"The cache {run.features.cache_name} contains other features now"
        except CacheNotFound:
            continue
        except CacheError as error:
            why = f"The cache {run.features.cache_name} cannot be used ({error.message})"
    return None, f"{why}: its runs are shown without a map and without pictures."


def _holds_its_features(cache: FeatureCache, run: Run) -> bool:
    names = [layer.name for layer in run.features.layers]
    then = Spec.from_json(run.features.spec)
    return set(names) <= set(cache.layers) and cache.spec.with_layers(names) == then.with_layers(names)


def _locate_in(cached: CachedImages, cache: FeatureCache, result: RunResult) -> CachedImages:
    # Val is a split of the cache, or was split off from train.
    split = result.part if result.part in cache else "train"
    if split not in cache:
        return replace(cached, cache=None, notes=(f"The cache {cache.name} no longer has {result.part} images.",))
    place = {name: row for row, name in enumerate(cache[split].ids)}
    rows = np.array([place.get(name, -1) for name in result.predictions.ids], np.int64)
    digests = cache[split].digests[rows[rows >= 0]]
    return replace(
        cached,
        split=split,
        rows=rows,
        images=hashlib.sha256(digests.tobytes()).hexdigest(),
        notes=tuple(_changes(cache, split, rows, result)),
    )


def _changes(cache: FeatureCache, split: str, rows: Rows, result: RunResult) -> list[str]:
    notes = []
    there = rows >= 0
    if not there.all():
        notes.append(f"{int((~there).sum()):,} of {len(rows):,} images are no longer in the cache {cache.name}.")
    return [*notes, *_target_changes(cache, split, rows, result)]


def _target_changes(cache: FeatureCache, split: str, rows: Rows, result: RunResult) -> list[str]:
    then, there = result.target, rows >= 0
    try:
        now = head_target(cache, then.columns)
        values, _ = read_targets(cache[split], now)
    except FeatcacheError as error:
        return [f"The targets are those at training time; the cache {cache.name} cannot be compared: {error.message}."]
    if now != then:
        return [
            f"The cache {cache.name} has other classes now ({_few(now.names)}) than at training time "
            f"({_few(then.names)}): the labels shown are those at training time."
        ]
    differ = values[rows[there]] != result.predictions.targets[there]
    changed = int((differ if differ.ndim == 1 else differ.any(axis=1)).sum())
    if not changed:
        return []
    return [
        f"{changed:,} images have another label in the cache {cache.name} now: "
        "the labels shown are those at training time."
    ]


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")


def _image_set(caches: Sequence[CachedImages], most: int) -> ImageSet:
    results = [one for cached in caches for one in cached.results]
    shown, images = _choose_images(results, most), len(results[0].predictions.ids)
    notes = [] if len(shown) == images else [_subset_note(len(shown), images, results[0].part)]
    return ImageSet(
        shown=shown,
        caches=tuple(replace(cached, rows=cached.rows[shown]) for cached in caches),
        notes=tuple(dict.fromkeys([*notes, *(note for cached in caches for note in cached.notes)])),
    )


def _subset_note(shown: int, of: int, part: str) -> str:
    return (
        f"{shown:,} of {of:,} {part} images are shown: the worst mistakes, and an even choice of the others. "
        "All numbers and tables count every image."
    )


def _choose_images(results: Sequence[RunResult], most: int) -> Rows:
    """Positions of the images to show, ascending."""
    everything: Rows = np.arange(len(results[0].predictions.targets))
    if len(everything) <= most:
        return everything
    worst = np.unique(np.concatenate([worst_mistakes(one)[: most // len(results)] for one in results]))
    others = np.setdiff1d(everything, worst)
    evenly = others[np.linspace(0, len(others) - 1, most - len(worst)).astype(np.int64)]
    return np.union1d(worst, evenly)


def worst_mistakes(result: RunResult) -> Rows:
    """Positions of a run's worst mistakes, the worst first; see `RunResult.sizes`."""
    sizes = np.where(result.wrong, result.sizes, -1.0)
    order: Rows = np.argsort(-sizes, kind="stable")[:MOST_MISTAKES]
    return order[sizes[order] >= 0]
