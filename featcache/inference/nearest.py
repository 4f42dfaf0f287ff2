"""The cached train images whose features are most like an image's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.catalog import places_of
from featcache.cache.reader import FeatureCache
from featcache.columns import SEPARATOR
from featcache.errors import CacheNotFound
from featcache.inference.classifier import spec_of
from featcache.inference.records import NearImage
from featcache.rows.cuts import SplitRows
from featcache.rows.joining import CacheLayers, joined_rows
from featcache.rows.origins import FeatureOrigin
from featcache.runs.run import Run


class NearestImages:
    """The train split of the caches that a head was trained on, its plain images.

    Raises CacheNotFound where a cache is gone or holds other features now.
    """

    def __init__(self, run: Run, *, data_dir: Path) -> None:
        with ExitStack() as opened:
            origins = run.features.origins
            caches = [opened.enter_context(_opened(origin, data_dir)) for origin in origins]
            self._split = caches[0]["train"]
            self._targets = [self._split.target(name) for name in run.target.columns if name in caches[0].targets]
            rows = np.arange(len(self._split))
            # Nothing is learned from them.
            chosen = SplitRows(source="train", rows=rows, targets=np.zeros(len(rows), np.int64))
            columns = [
                CacheLayers(cache=cache, layers=tuple(layer.name for layer in origin.layers))
                for cache, origin in zip(caches, origins, strict=True)
            ]
            self._rows = joined_rows(columns, chosen, None)
            self._open = opened.pop_all()

    def find(self, features: NDArray[np.float32], count: int) -> list[tuple[NearImage, ...]]:
        """The `count` nearest images of each row of float32 (n, D), nearest first. The whole split is read once."""
        asked = _unit(features)
        near: NDArray[np.float32] = np.empty((len(asked), 0), np.float32)
        rows: NDArray[np.int64] = np.empty((len(asked), 0), np.int64)
        start = 0
        for block in self._rows.blocks():
            numbers = np.broadcast_to(np.arange(start, start + len(block)), (len(asked), len(block)))
            near, rows = np.hstack([near, asked @ _unit(block).T]), np.hstack([rows, numbers])
            best = np.argsort(-near, axis=1, kind="stable")[:, :count]
            near, rows = np.take_along_axis(near, best, axis=1), np.take_along_axis(rows, best, axis=1)
            start += len(block)
        return [self._named(*pair) for pair in zip(near.tolist(), rows.tolist(), strict=True)]

    def _named(self, similarities: Sequence[float], positions: Sequence[int]) -> tuple[NearImage, ...]:
        rows, ids = self._rows.chosen.rows[list(positions)], self._split.ids
        labels = (
            zip(*(one.at(rows).decoded() for one in self._targets), strict=True) if self._targets else [()] * len(rows)
        )
        return tuple(
            NearImage(id=ids[row], label=_shown(label), similarity=similarity)
            for row, label, similarity in zip(rows.tolist(), labels, similarities, strict=True)
        )

    def close(self) -> None:
        """Close the caches."""
        self._open.close()


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; rows of zeros stay."""
    unit: NDArray[np.float32] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _shown(values: tuple[Any, ...]) -> str | None:
    """What is right for an image, as text; None where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return SEPARATOR.join(SEPARATOR.join(one) if isinstance(one, tuple) else str(one) for one in known)


def _opened(origin: FeatureOrigin, data_dir: Path) -> FeatureCache:
    """The cache where it was, or under its name in the data folder."""
    for path in places_of(Path(origin.cache), data_dir / "features"):
        cache = _same(path, origin)
        if cache is not None:
            return cache
    raise CacheNotFound(
        f"the cache the head was trained on is gone: {origin.cache}",
        hint="leave out --neighbours, which looks at its train images; or extract it again",
    )


def _same(path: Path, origin: FeatureOrigin) -> FeatureCache | None:
    try:
        cache = FeatureCache.open(path)
    except CacheNotFound:
        return None
    names = [layer.name for layer in origin.layers]
    if "train" in cache and set(names) <= set(cache.layers) and cache.spec.restricted_to(names) == spec_of(origin):
        return cache
    cache.close()
    return None
