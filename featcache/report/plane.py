"""A map of a site's features: where each image of its album lies on the plane."""

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
from featcache.report.albums import Rows, Site

METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
UNITS = 10_000
"""Coordinates on the page are whole numbers from 0 to this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """`places` int64 (n, 2): x and y of the images, 0 to UNITS, -1 for those that are not on the map.

    `title`: which map of which features. `explained`: the shares of variance along x and y, for PCA.
    """

    places: npt.NDArray[np.int64]
    title: str
    method: str
    explained: tuple[float, float] | None
    notes: tuple[str, ...]


def plane_of(site: Site, labels: Rows, method: Method, *, seed: int = 0) -> Plane | None:
    """The map of the features that a site's runs were trained on; None where the cache has none of them.

    `labels` int64 (n,): the images' labels, of which a thinned map keeps equal shares.

    Raises MissingExtra where the method is not installed.
    """
    there = np.flatnonzero(site.rows >= 0)
    if site.cache is None or len(there) == 0:
        return None
    with FeatureCache.open(site.cache) as cache:
        title = f"{METHOD_NAMES[method]} of {cache.spec.backbone}/{'+'.join(site.layers)}"
        rows = _PartRows(cache[site.split], site.layers, site.rows[there])
        try:
            found = project(rows, method=method, seed=seed, labels=labels[there])
        except MissingExtra:
            raise
        except FeatcacheError as error:
            return Plane(places=_nowhere(site), title=title, method=method, explained=None, notes=(error.message,))
    return _placed(site, there, found, title)


class _PartRows:
    """Some rows of a split, its layers side by side, as float32 values: what `project` reads blocks of."""

    def __init__(self, split: CachedSplit, layers: Sequence[str], rows: Rows) -> None:
        self._arrays = [split.layer(name) for name in layers]
        self._rows = rows
        self.shape = (len(rows), sum(array.shape[1] for array in self._arrays))

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        return np.concatenate([_values(array, self._rows[index]) for array in self._arrays], axis=1)


def _values(array: FeatureArray, rows: Rows) -> npt.NDArray[np.float32]:
    return array.gather(rows).astype(np.float32) * np.float32(array.scale) + np.float32(array.offset)


def _placed(site: Site, there: Rows, found: Projection, title: str) -> Plane:
    low = found.points.min(axis=0)
    # One scale for both axes: distances along x and y mean the same.
    span = float((found.points - low).max()) or 1.0
    places = _nowhere(site)
    places[there[found.rows]] = np.rint((found.points - low) * (UNITS / span)).astype(np.int64)
    notes = () if found.note is None else (f"{found.note}.",)
    return Plane(places=places, title=title, method=found.method, explained=found.explained, notes=notes)


def _nowhere(site: Site) -> npt.NDArray[np.int64]:
    return np.full((len(site.rows), 2), -1, np.int64)
