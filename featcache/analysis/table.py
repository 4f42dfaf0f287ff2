"""A table of all images of a cache, one row per image, split after split; the input of an audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.analysis.values import Rows, Values, blocks
from featcache.cache.reader import FeatureArray, FeatureCache
from featcache.cache.targets import Column, Target
from featcache.columns import LABEL, TARGET_KINDS
from featcache.images.samples import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """The images of a cache, numbered 0 to N-1 over all splits in their order.

    `split`: int64 (N,), an index into `splits`. `row`: int64 (N,), the image's row in its split. `labels`: int64 (N,),
    indices into `classes`, -1 for unlabelled; all -1 if the target `label` does not hold classes. `targets`: all
    targets by name, with one value per image. `digests`: uint8 (N, 32), SHA-256 of the images' bytes. Augmented views
    are not included.
    """

    label_name = LABEL

    layer: str
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    split: Rows
    row: Rows
    labels: Rows
    targets: Mapping[str, Target]
    digests: npt.NDArray[np.uint8]
    _arrays: tuple[FeatureArray, ...]

    @classmethod
    def of(cls, cache: FeatureCache, layer: str | None = None) -> ImageTable:
        """The images of a cache and their features in a layer (None: the last). Raises UnknownName."""
        layer = cache.layers[-1] if layer is None else layer
        arrays = tuple(cache[split].layer(layer) for split in cache.splits)
        rows = [np.arange(len(array)) for array in arrays]
        targets = {name: _whole(cache, column) for name, column in cache.targets.items()}
        label = targets.get(LABEL)
        classes = label is not None and label.kind == "classes"
        return cls(
            layer=layer,
            classes=label.names if classes and label is not None else (),
            splits=cache.splits,
            split=np.repeat(np.arange(len(rows)), [len(some) for some in rows]),
            row=np.concatenate([np.empty(0, np.int64), *rows]),
            labels=label.values if classes and label is not None else np.full(sum(map(len, rows)), -1, np.int64),
            targets=targets,
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

    def different_values(self, numbers: Rows) -> dict[str, tuple[str, ...]]:
        """The targets of classes, lists or numbers in which images `numbers`, int64 (n,), differ, with their values.

        Images without a value are left out.
        """
        found = {}
        for name, target in self.targets.items():
            if target.kind in TARGET_KINDS:
                some = target.at(numbers).decode()
                texts = sorted({_text(value) for value in some if value is not None})
                if len(texts) > 1:
                    found[name] = tuple(texts)
        return found

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


def _whole(cache: FeatureCache, column: Column) -> Target:
    """A target over all splits."""
    parts = [cache[split].target(column.name).values for split in cache.splits]
    return Target(column=column, values=np.concatenate(parts) if parts else column.missing(0))


def _text(value: str | float | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return ";".join(value) or "no class"
    # All digits that a number of a table has: 20240101 and 20240102 differ.
    return f"{value:.15g}" if isinstance(value, float) else value
