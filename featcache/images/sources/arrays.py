"""Images that are arrays already: from memory, or from anything that hands out one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError, SourceError
from featcache.images.decoding import misfit
from featcache.images.source import (
    UNLABELLED,
    ImageSource,
    Listing,
    Pixels,
    Sample,
    Stamp,
    check_splits,
    numbered_ids,
)


class Rows(Protocol):
    """Images by number: an array (N, H, W) or (N, H, W, C), a list of arrays of any sizes, a memory map, ..."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


Labels = Sequence[int] | npt.NDArray[np.integer[Any]]


class ArraySource(ImageSource):
    """uint8 arrays as images; a row's id is its split and number, "train/00012".

    Args:
        images: (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4) uint8, or a list of such images; or a
            mapping of split to (images, labels).
        labels: N class numbers, -1 for unlabelled; None: all unlabelled.
        classes: names; left out, they are "0", "1", ... up to the greatest label.
        name: for the names of caches, and what names this source in a selection.
        split: which split the images are, where no mapping is given.
        numbers: the numbers in the ids by split, where they are not 0, 1, 2, ...

    Raises SourceError for another dtype or shape, labels without a class, or a different number of them.
    """

    def __init__(
        self,
        images: Rows | Mapping[str, tuple[Rows, Labels | None]],
        labels: Labels | None = None,
        classes: Sequence[str] | None = None,
        *,
        name: str = "arrays",
        split: str = "train",
        numbers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        given = images if isinstance(images, Mapping) else {split: (images, labels)}
        check_splits(given)
        self._images = {part: _checked(rows, part) for part, (rows, _) in given.items()}
        counts = {part: len(rows) for part, rows in self._images.items()}
        part_labels = {part: _label_list(found, counts[part], part) for part, (_, found) in given.items()}
        ids = {
            part: numbered_ids(part, (numbers or {}).get(part, range(count)), count) for part, count in counts.items()
        }
        self._row = {sample_id: row for part in ids for row, sample_id in enumerate(ids[part])}
        listing = Listing(
            ((part, i, n) for part in ids for i, n in zip(ids[part], part_labels[part], strict=True)),
            _class_names(classes, part_labels),
        )
        super().__init__(name=name, origin=name, listing=listing, native_size=_size_of_all(self._images))

    def read(self, sample: Sample) -> Pixels:
        """The row's pixels as they were given, read-only: (H, W) or (H, W, C) uint8."""
        try:
            row = self._images[sample.split][self._row[sample.id]]
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None
        except OSError as error:
            raise ImageError(f"{sample.id}: cannot be read: {error}") from error
        pixels = np.asarray(row).view()
        reason = misfit(pixels)
        if reason:
            raise ImageError(f"{sample.id}: {reason}")
        pixels.flags.writeable = False
        return pixels

    def stamp(self, sample: Sample) -> Stamp | None:
        """None: reading a row costs nothing, and nothing tells whether somebody has written to it."""
        return None


def _checked(rows: Rows, split: str) -> Rows:
    if not len(rows):
        raise SourceError(f"the split {split} has no images")
    # One array is judged by its first row, a list row by row: its images may differ.
    for number in range(1 if hasattr(rows, "shape") else len(rows)):
        reason = misfit(np.asarray(rows[number]))
        if reason:
            raise SourceError(f"image {number} of the split {split}: {reason}", hint=_hint(rows[number]))
    return rows


def _hint(row: Any) -> str | None:
    shape = np.asarray(row).shape
    if np.asarray(row).dtype.kind == "f":
        return "give the pixels as they were before scaling: values 0 to 255 as uint8"
    channels_first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    return "channels stand last: images.transpose(0, 2, 3, 1)" if channels_first else None


def _label_list(labels: Labels | None, count: int, split: str) -> list[int]:
    if labels is None:
        return [UNLABELLED] * count
    found = np.asarray(labels)
    if found.shape != (count,):
        raise SourceError(f"expected {count:,} labels for the split {split}, got shape {found.shape}")
    if found.dtype.kind not in "iu":
        raise SourceError(f"expected whole numbers as labels of the split {split}, got {found.dtype}")
    return [int(label) for label in found]


def _class_names(classes: Sequence[str] | None, labels: Mapping[str, list[int]]) -> tuple[str, ...]:
    if classes is not None:
        return tuple(str(name) for name in classes)
    greatest = max((max(of_split) for of_split in labels.values()), default=UNLABELLED)
    return tuple(str(number) for number in range(greatest + 1))


def _size_of_all(images: Mapping[str, Rows]) -> tuple[int, int] | None:
    sizes: set[tuple[int, int]] = set()
    for rows in images.values():
        whole = getattr(rows, "shape", None)
        shapes = [np.shape(rows[row])[:2] for row in range(len(rows))] if whole is None else [whole[1:3]]
        sizes.update((int(height), int(width)) for height, width in shapes)
    return sizes.pop() if len(sizes) == 1 else None
