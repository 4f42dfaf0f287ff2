"""A torch Dataset as a source of images: its items as they come, before any augmentation."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from featcache.errors import ImageError, SourceError
from featcache.images.decoding import misfit, to_rgb
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

_PROBED_ITEMS = 8
_PROBES = 3


class MapDataset(Protocol):
    """A map-style dataset: a length and items (image, label) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TorchDatasetSource(ImageSource):
    """Items (image, label) of map-style datasets; a sample's id is its split and number, "train/00012".

    An image is a PIL image (turned to RGB as `decoding` says, without orientation), a uint8 array (H, W) or
    (H, W, C), or a uint8 tensor (C, H, W) or (H, W). Labels come from the dataset's `targets` or `labels` where
    these agree with its items, else every item is read once to learn its label.

    Args:
        datasets: one dataset (train), or a mapping of split to dataset.
        name: for the names of caches, and what names this source in a selection.
        classes: names; left out, the dataset's own `classes`, else "0", "1", ... up to the greatest label.

    Raises SourceError for a random transform, found by reading some items several times: a cache has one row
    per image. Also for items of another kind, and for datasets that have no length.
    """

    def __init__(
        self,
        datasets: MapDataset | Mapping[str, MapDataset],
        *,
        name: str = "dataset",
        classes: Sequence[str] | None = None,
    ) -> None:
        self._datasets: dict[str, MapDataset] = dict(datasets) if isinstance(datasets, Mapping) else {"train": datasets}
        check_splits(self._datasets)
        self._renew_lock()
        labels = {split: _labels_of(dataset, split) for split, dataset in self._datasets.items()}
        ids = {split: numbered_ids(split, range(len(found)), len(found)) for split, found in labels.items()}
        self._row = {sample_id: row for split in ids for row, sample_id in enumerate(ids[split])}
        listing = Listing(
            ((split, i, n) for split in ids for i, n in zip(ids[split], labels[split], strict=True)),
            _class_names(classes, self._datasets, labels),
        )
        super().__init__(name=name, origin=name, listing=listing)

    def read(self, sample: Sample) -> Pixels:
        """(H, W) or (H, W, C) uint8 of one item. Raises ImageError naming the sample.

        One thread at a time: datasets are written for one.
        """
        if self._lock_owner != os.getpid():
            # Whoever held it at the fork does not exist here.
            self._renew_lock()
        if sample.id not in self._row:
            raise ImageError(f"{sample.id}: no such image in {self.origin}")
        with self._lock:
            image, _ = _item(self._datasets[sample.split], self._row[sample.id], sample.id)
            return _pixels(image, sample.id)

    def stamp(self, sample: Sample) -> Stamp | None:
        """None: nothing tells whether an item is still the same."""
        return None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        self._lock_owner = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._renew_lock()


def _labels_of(dataset: MapDataset, split: str) -> list[int]:
    try:
        count = len(dataset)
    except TypeError:
        raise SourceError(f"the dataset of the split {split} has no length", hint="give a map-style dataset") from None
    if not count:
        raise SourceError(f"the dataset of the split {split} is empty")
    told = _told_labels(dataset, count)
    probed = _probe_all(dataset, count, split, may_fail=told is not None)
    if told is not None and all(told[number] == label for number, label in probed.items()):
        return told
    return [_label(_item(dataset, n, f"{split}/{n:05d}")[1], f"{split}/{n:05d}") for n in range(count)]


def _probe_all(dataset: MapDataset, count: int, split: str, *, may_fail: bool) -> dict[int, int]:
    """Labels by number of some items from all over the dataset; an unreadable one is left to whoever reads it."""
    found: dict[int, int] = {}
    failed: ImageError | None = None
    for number in sorted({round(place) for place in np.linspace(0, count - 1, _PROBED_ITEMS)}):
        try:
            found[number] = _probe(dataset, number, f"{split}/{number:05d}")
        except ImageError as error:
            failed = failed or error
    if failed and not (may_fail and found):
        raise failed
    return found


def _probe(dataset: MapDataset, number: int, name: str) -> int:
    """The label of one item that is the same however often it is read."""
    items = [_item(dataset, number, name) for _ in range(_PROBES)]
    first, *others = [_pixels(image, name) for image, _ in items]
    if any(not np.array_equal(first, other) for other in others):
        raise SourceError(
            f"{name}: reading it again gives other pixels, so the dataset augments at random",
            hint="give the dataset without its random transform: a cache holds one row per image",
        )
    return _label(items[0][1], name)


def _told_labels(dataset: Any, count: int) -> list[int] | None:
    """The labels that the dataset itself lists, None where it lists none that can be used."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        inner = _told_labels(dataset.dataset, len(dataset.dataset))
        return None if inner is None else [inner[int(index)] for index in dataset.indices]
    for attribute in ("targets", "labels"):
        told = getattr(dataset, attribute, None)
        if isinstance(told, Sequence | np.ndarray) or _is_tensor(told):
            numbers = np.asarray(told)
            if numbers.shape == (count,) and numbers.dtype.kind in "iu":
                return [int(number) for number in numbers]
    return None


def _item(dataset: MapDataset, number: int, name: str) -> tuple[Any, Any]:
    """(image, label)."""
    try:
        item = dataset[number]
    except Exception as error:  # Somebody else's code: whatever it raises, this image cannot be read.
        raise ImageError(f"{name}: cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise SourceError(f"{name}: expected an item (image, label), got {type(item).__name__}")
    return item[0], item[1]


def _label(label: Any, name: str) -> int:
    if label is None:
        return UNLABELLED
    number = np.asarray(label)
    if number.size != 1 or number.dtype.kind not in "iu":
        raise SourceError(f"{name}: expected a class number as label, got {label!r}")
    return int(number.reshape(()))


def _pixels(image: Any, name: str) -> Pixels:
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if _is_tensor(image):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name}: expected a PIL image, an array or a tensor, got {type(image).__name__}")
    reason = misfit(image)
    if reason:
        hint = "leave out ToTensor and normalisation: the backbone's own transform does both"
        raise ImageError(f"{name}: {reason}", hint=hint if image.dtype.kind == "f" else None)
    return np.ascontiguousarray(image)


def _is_tensor(value: Any) -> bool:
    # Whoever made a tensor has imported torch; nobody else must pay for it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _class_names(
    classes: Sequence[str] | None, datasets: Mapping[str, Any], labels: Mapping[str, list[int]]
) -> tuple[str, ...]:
    if classes is not None:
        return tuple(str(name) for name in classes)
    own = {_own_classes(dataset) for dataset in datasets.values()} - {None}
    if len(own) > 1:
        raise SourceError(
            "the splits' datasets have different classes, so their labels mean different things",
            hint="give datasets with the same `classes`, or the names as `classes=`",
        )
    told = own.pop() if own else None
    greatest = max(max(of_split) for of_split in labels.values())
    return told if told else tuple(str(number) for number in range(greatest + 1))


def _own_classes(dataset: Any) -> tuple[str, ...] | None:
    inner = dataset.dataset if hasattr(dataset, "indices") and hasattr(dataset, "dataset") else dataset
    classes = getattr(inner, "classes", None)
    return tuple(str(name) for name in classes) if classes else None
