"""Class names as they are met in a list of images, numbered at once and put in order when all are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.images.samples import SampleColumns
from featcache.images.source import SPLITS, UNLABELLED, Listing, check_splits


class ClassNames:
    """Gives every name a number; `in_order` says which number it has in the end."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """The number of a class so far; -1 for None or an empty name."""
        return self._numbers.setdefault(name, len(self._numbers)) if name else UNLABELLED

    def in_order(self) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        """The names, sorted, by value where all are whole numbers; and (n,) the place of each number among them."""
        names = list(self._numbers)
        numeric = all(name.isdecimal() for name in names)
        classes = sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))
        place = {name: position for position, name in enumerate(classes)}
        return tuple(classes), np.array([place[name] for name in names], np.int64)


class ImageList:
    """Images as they are listed one at a time, each with a split and perhaps a class."""

    def __init__(self) -> None:
        self._columns = {split: SampleColumns(split) for split in SPLITS}
        self._names = ClassNames()

    def add(self, split: str, sample_id: str, class_name: str | None) -> None:
        """One more image. Raises SourceError for an unknown split."""
        check_splits({split: None})
        self._columns[split].append(sample_id, self._names.number(class_name))

    def listing(self) -> Listing:
        """All of them, sorted; raises SourceError as `Listing` does."""
        classes, numbers = self._names.in_order()
        samples = {split: column.samples().relabelled(numbers) for split, column in self._columns.items()}
        return Listing.of(samples, classes)
