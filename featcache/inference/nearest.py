"""The cached train images whose features are most like an image's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from featcache.cache.catalog import places_of
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheNotFound
from featcache.inference.classifier import spec_of
from featcache.inference.records import NearImage
from featcache.rows.batches import StreamedBatches
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
            self._classes, self._split = caches[0].classes, caches[0]["train"]
            # A copy: torch warns of arrays that must not be written to.
            chosen = SplitRows(source="train", rows=np.arange(len(self._split)), targets=self._split.labels.copy())
            columns = [
                CacheLayers(cache=cache, layers=tuple(layer.name for layer in origin.layers))
                for cache, origin in zip(caches, origins, strict=True)
            ]
            self._rows = joined_rows(columns, chosen)
            self._open = opened.pop_all()

    def find(self, features: NDArray[np.float32], count: int) -> list[tuple[NearImage, ...]]:
        """The `count` nearest images of each row of float32 (n, D), nearest first. The whole split is read once."""
        asked = F.normalize(torch.from_numpy(features), dim=1)
        near, rows = torch.empty((len(asked), 0)), torch.empty((len(asked), 0), dtype=torch.int64)
        for start, block in self._blocks():
            near = torch.cat([near, asked @ F.normalize(block, dim=1).T], dim=1)
            rows = torch.cat([rows, torch.arange(start, start + len(block)).expand(len(asked), -1)], dim=1)
            near, best = near.topk(min(count, near.shape[1]), dim=1)
            rows = rows.gather(1, best)
        return [self._named(*pair) for pair in zip(near.tolist(), rows.tolist(), strict=True)]

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """First position and features, float32 (n, D), of blocks of the train rows."""
        start = 0
        batches = StreamedBatches(self._rows, batch_size=1, seed=0, device=torch.device("cpu"))
        for block, _ in batches.in_order():
            yield start, block
            start += len(block)

    def _named(self, similarities: Sequence[float], positions: Sequence[int]) -> tuple[NearImage, ...]:
        rows, ids, labels = self._rows.chosen.rows[list(positions)], self._split.ids, self._split.labels
        return tuple(
            NearImage(id=ids[row], label=None if labels[row] < 0 else self._classes[labels[row]], similarity=similarity)
            for row, similarity in zip(rows.tolist(), similarities, strict=True)
        )

    def close(self) -> None:
        """Close the caches."""
        self._open.close()


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
