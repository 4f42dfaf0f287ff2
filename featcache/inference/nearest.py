"""Find the cached train images whose features are most similar to those of an image."""

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
from featcache.inference.records import NearImage
from featcache.rows.cuts import SplitRows
from featcache.rows.joining import CacheLayers, join_rows
from featcache.rows.origins import FeatureOrigin
from featcache.runs.run import Run


class NearestImages:
    """The plain train images of the caches that a head was trained on.

    Args:
        run: The run of the head.
        data_dir: Caches that were moved are searched here.

    Raises:
        CacheNotFound: A cache does not exist any more, or contains other features now.
    """

    def __init__(self, run: Run, *, data_dir: Path) -> None:
        with ExitStack() as opened:
            origins = run.features.origins
            caches = [opened.enter_context(_open_cache(origin, data_dir)) for origin in origins]
            self._split = caches[0]["train"]
            self._targets = [self._split.target(name) for name in run.target.columns if name in caches[0].targets]
            rows = np.arange(len(self._split))
            # The targets are not used here.
            chosen = SplitRows(source="train", rows=rows, targets=np.zeros(len(rows), np.int64))
            columns = [
                CacheLayers(cache=cache, layers=tuple(layer.name for layer in origin.layers))
                for cache, origin in zip(caches, origins, strict=True)
            ]
            self._rows = join_rows(columns, chosen, None)
            self._open = opened.pop_all()

    def find(self, features: NDArray[np.float32], count: int) -> list[tuple[NearImage, ...]]:
        """The `count` nearest images of each row of float32 (n, D), nearest first. It reads the whole split once."""
        queries = _unit(features)
        near: NDArray[np.float32] = np.empty((len(queries), 0), np.float32)
        rows: NDArray[np.int64] = np.empty((len(queries), 0), np.int64)
        start = 0
        for block in self._rows.blocks():
            numbers = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
            near, rows = np.hstack([near, queries @ _unit(block).T]), np.hstack([rows, numbers])
            best = np.argsort(-near, axis=1, kind="stable")[:, :count]
            near, rows = np.take_along_axis(near, best, axis=1), np.take_along_axis(rows, best, axis=1)
            start += len(block)
        return [self._near_images(*pair) for pair in zip(near.tolist(), rows.tolist(), strict=True)]

    def _near_images(self, similarities: Sequence[float], positions: Sequence[int]) -> tuple[NearImage, ...]:
        rows, ids = self._rows.chosen.rows[list(positions)], self._split.ids
        labels = (
            zip(*(one.at(rows).decode() for one in self._targets), strict=True) if self._targets else [()] * len(rows)
        )
        return tuple(
            NearImage(id=ids[row], label=_label_text(label), similarity=similarity)
            for row, label, similarity in zip(rows.tolist(), labels, similarities, strict=True)
        )

    def close(self) -> None:
        """Close the caches."""
        self._open.close()


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows scaled to length 1; rows of zeros are unchanged."""
    unit: NDArray[np.float32] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _label_text(values: tuple[Any, ...]) -> str | None:
    """The targets of an image as text; None where it has none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return SEPARATOR.join(SEPARATOR.join(one) if isinstance(one, tuple) else str(one) for one in known)


def _open_cache(origin: FeatureOrigin, data_dir: Path) -> FeatureCache:
    """Open the cache at its recorded path, or by its name in the data folder."""
    for path in places_of(Path(origin.cache), data_dir / "features"):
        cache = _same(path, origin)
        if cache is not None:
            return cache
    raise CacheNotFound(
        f"the cache the head was trained on does not exist any more: {origin.cache}",
        hint="leave out --neighbours, which needs its train images; or extract it again",
    )


def _same(path: Path, origin: FeatureOrigin) -> FeatureCache | None:
    try:
        cache = FeatureCache.open(path)
    except CacheNotFound:
        return None
    names = [layer.name for layer in origin.layers]
    if "train" in cache and set(names) <= set(cache.layers) and cache.spec.with_layers(names) == origin.layers_spec:
        return cache
    cache.close()
    return None
