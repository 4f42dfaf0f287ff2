"""The cached train images whose features are most like an image's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import CacheNotFound
from featcache.heads.records import FeatureOrigin
from featcache.heads.runs import Run
from featcache.inference.classifier import origins, spec_of
from featcache.inference.records import NearImage

# What a block of train features may take as float32.
_BLOCK_BYTES = 128 << 20


class NearestImages:
    """The train split of the cache that a head was trained on.

    Raises CacheNotFound where the cache is gone or holds other features now.
    """

    def __init__(self, run: Run, *, data_dir: Path) -> None:
        (origin,) = origins(run)
        self._layers = origin.layers
        self._cache = _opened(origin, data_dir)
        self._split = self._cache["train"]
        self._arrays = [self._split.layer(layer.name) for layer in origin.layers]

    def find(self, features: NDArray[np.float32], count: int) -> list[tuple[NearImage, ...]]:
        """The `count` nearest images of each row of float32 (n, D), nearest first. The whole split is read once."""
        asked = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
        # With several views of an image, its nearest one speaks for it.
        kept = min(count * self._cache.spec.views, len(self._split))
        near, rows = torch.empty((len(asked), 0)), torch.empty((len(asked), 0), dtype=torch.int64)
        for start, block in self._blocks():
            cosines = asked @ torch.nn.functional.normalize(block, dim=1).T
            near = torch.cat([near, cosines], dim=1)
            rows = torch.cat([rows, torch.arange(start, start + len(block)).expand(len(asked), -1)], dim=1)
            near, best = near.topk(min(kept, near.shape[1]), dim=1)
            rows = rows.gather(1, best)
        return [self._named(*pair, count) for pair in zip(near.tolist(), rows.tolist(), strict=True)]

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        wide = sum(layer.dim for layer in self._layers)
        rows = max(1, _BLOCK_BYTES // (4 * wide))
        for start in range(0, len(self._split), rows):
            stored = [array.gather(slice(start, start + rows)) for array in self._arrays]
            values = [layer.values(part) for layer, part in zip(self._layers, stored, strict=True)]
            yield start, torch.from_numpy(np.concatenate(values, axis=1))

    def _named(self, similarities: Sequence[float], rows: Sequence[int], count: int) -> tuple[NearImage, ...]:
        found: dict[str, NearImage] = {}
        for similarity, row in zip(similarities, rows, strict=True):
            name, label = self._split.ids[row], int(self._split.labels[row])
            known = None if label < 0 else self._cache.classes[label]
            found.setdefault(name, NearImage(id=name, label=known, similarity=similarity))
        return tuple(found.values())[:count]

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()


def _opened(origin: FeatureOrigin, data_dir: Path) -> FeatureCache:
    """The cache where it was, or under its name in the data folder."""
    for path in (Path(origin.cache), data_dir / "features" / Path(origin.cache).name):
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
