"""A table of all images of a cache, one row per image, split after split; the input of an audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.analysis.thinning import Rows
from featcache.analysis.values import Values, blocks
from featcache.cache.reader import FeatureArray, FeatureCache
from featcache.images.samples import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """The images of a cache, numbered 0 to N-1 over all splits in their order.

    `split`: int64 (N,), an index into `splits`. `row`: int64 (N,), the image's row in its split. `labels`: int64 (N,),
    -1 for unlabelled. `digests`: uint8 (N, 32), SHA-256 of the images' bytes. Augmented views are not included.
    """

    layer: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    split: Rows
    row: Rows
    labels: Rows
    digests: npt.NDArray[np.uint8]
    _arrays: tuple[FeatureArray, ...]

    @classmethod
    def of(cls, cache: FeatureCache, layer: str | None = None) -> ImageTable:
        """The images of a cache and their features in a layer (None: the first). Raises UnknownName."""
        arrays = tuple(cache[split].layer(layer) for split in cache.splits)
        rows = [np.arange(len(array)) for array in arrays]
        return cls(
            layer=arrays[0].name if arrays else layer or "",
            classes=cache.classes,
            splits=cache.splits,
            split=np.repeat(np.arange(len(rows)), [len(some) for some in rows]),
            row=np.concatenate([np.empty(0, np.int64), *rows]),
            labels=np.concatenate([np.empty(0, np.int64), *(array.split.labels for array in arrays)]),
            digests=np.concatenate([np.empty((0, 32), np.uint8), *(array.split.digests for array in arrays)]),
            _arrays=arrays,
        )

    def __len__(self) -> int:
        return len(self.row)

    @property
    def feature_dim(self) -> int:
        """The number of values of one image's feature."""
        return self._arrays[0].shape[1]

    def of_split(self, split: str) -> Rows:
        """The numbers of the images of one split, ascending: int64 (n,)."""
        return np.flatnonzero(self.split == self.splits.index(split))

    def sample(self, number: int) -> Sample:
        """The id, split and label of one image."""
        array = self._arrays[self.split[number]]
        sample_id = array.split.ids[int(self.row[number])]
        return Sample(id=sample_id, split=array.split.name, label=int(self.labels[number]))

    def samples(self, numbers: Rows) -> tuple[Sample, ...]:
        """`sample` for each of `numbers`, int64 (n,)."""
        return tuple(self.sample(int(number)) for number in numbers)

    def blocks(self) -> Iterator[tuple[int, Values]]:
        """The features of all images in blocks: (number of the block's first image, float32 (n, D)).

        Raises HeadError for NaN or infinity, CacheDamaged for rows that are not those that were written.
        """
        start = 0
        for part, array in enumerate(self._arrays):
            rows = self.row[self.split == part]
            for first, values in blocks(array, rows):
                yield start + first, values
            start += len(rows)
