"""Two-dimensional maps of the features of an image set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.analysis import Projection, project
from featcache.analysis.projection import Method
from featcache.cache.reader import CachedSplit, FeatureArray, FeatureCache
from featcache.errors import FeatcacheError, MissingExtra
from featcache.report.image_sets import CachedImages, Rows

METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
UNITS = 10_000
"""Coordinates on the page are whole numbers from 0 to this number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding2d:
    """A map of the features of an image set.

    `positions`: int64 (n, 2), x and y of the images, 0 to UNITS, -1 for images that are not on the map. `title`: the
    method and the features. `explained`: for PCA the shares of variance along x and y, else None.
    """

    positions: npt.NDArray[np.int64]
    title: str
    method: str
    explained: tuple[float, float] | None
    notes: tuple[str, ...]


def embedding_of(cached: CachedImages, labels: Rows | None, method: Method, *, seed: int = 0) -> Embedding2d | None:
    """The map of the features in one cache; None if the cache has none of the images.

    `labels`: int64 (n,), the classes of the images, or None; if only some images are on the map, every class keeps its
    share.

    Raises MissingExtra if the method is not installed.
    """
    there = np.flatnonzero(cached.rows >= 0)
    if cached.cache is None or len(there) == 0:
        return None
    with FeatureCache.open(cached.cache) as cache:
        title = f"{METHOD_NAMES[method]} of {cache.spec.backbone}/{'+'.join(cached.layers)}"
        rows = _PartRows(cache[cached.split], cached.layers, cached.rows[there])
        try:
            projection = project(rows, method=method, seed=seed, labels=None if labels is None else labels[there])
        except MissingExtra:
            raise
        except FeatcacheError as error:
            return Embedding2d(
                positions=_no_positions(cached), title=title, method=method, explained=None, notes=(error.message,)
            )
    return _embedding(cached, there, projection, title)


class _PartRows:
    """Some rows of a split as float32 values, its layers concatenated: the input of `project`, read in blocks."""

    def __init__(self, split: CachedSplit, layers: Sequence[str], rows: Rows) -> None:
        self._arrays = [split.layer(name) for name in layers]
        self._rows = rows
        self.shape = (len(rows), sum(array.shape[1] for array in self._arrays))

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        return np.concatenate([_values(array, self._rows[index]) for array in self._arrays], axis=1)


def _values(array: FeatureArray, rows: Rows) -> npt.NDArray[np.float32]:
    return array.gather(rows).astype(np.float32) * np.float32(array.scale) + np.float32(array.offset)


def _embedding(cached: CachedImages, there: Rows, projection: Projection, title: str) -> Embedding2d:
    low = projection.points.min(axis=0)
    # One scale for both axes, so that distances along x and y are comparable.
    span = float((projection.points - low).max()) or 1.0
    positions = _no_positions(cached)
    positions[there[projection.rows]] = np.rint((projection.points - low) * (UNITS / span)).astype(np.int64)
    notes = () if projection.note is None else (f"{projection.note}.",)
    return Embedding2d(
        positions=positions, title=title, method=projection.method, explained=projection.explained, notes=notes
    )


def _no_positions(cached: CachedImages) -> npt.NDArray[np.int64]:
    return np.full((len(cached.rows), 2), -1, np.int64)
