"""A torch Dataset as a source of images: its items, without random augmentation.

The label is that of `__getitem__`. A list of labels in an attribute of the dataset is used only if torchvision's own
`__getitem__` reads it; else every item is read once. Labels are mapped to classes by the dataset's class names, also if
datasets are concatenated or cut (ConcatDataset, Subset).
"""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.listing import Listing
from featcache.images.location import ImagesArgument, Location, OpenOptions, object_location, register
from featcache.images.names import ClassNames
from featcache.images.omissions import Omissions
from featcache.images.pixels import reason_invalid
from featcache.images.samples import UNLABELLED, Sample, SampleColumns
from featcache.images.source import ImageSource, Pixels, Stamp, check_splits, row_ids
from featcache.images.sources.arrays import is_tensor

_PROBED_ITEMS = 8
_PROBES = 3
_HASHED_ITEMS = 12


class MapDataset(Protocol):
    """A map-style dataset: a length and items (image, label) by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TorchDatasetSource(ImageSource):
    """Items (image, label) of a map-style dataset; a sample's id is its split and number, "train/00012".

    An image is a PIL image (converted to RGB as in `decoding`, without EXIF orientation), an array, uint8 (H, W) or
    (H, W, C), or a tensor, uint8 (C, H, W) or (H, W).

    Args:
        dataset: The dataset.
        split: The split of its items.
        name: A short name, for the names of caches.
        classes: The class names, if the dataset has none.

    Raises:
        SourceError: The dataset has a random transform, detected by reading some items several times (a cache has one
            row per image); items of another type; no length; or class numbers with ambiguous meaning.
    """

    def __init__(
        self,
        dataset: MapDataset,
        *,
        split: str = "train",
        name: str = "dataset",
        classes: Sequence[str] | None = None,
    ) -> None:
        check_splits({split: None})
        self._dataset, self._split = dataset, split
        self._renew_lock()
        count = _length(dataset, split)
        _probe_some(dataset, count, split)
        class_names = _ClassNamesOfItems(dataset, classes, split)
        numbering = ClassNames()
        for known in class_names.names_in_order:
            numbering.number(known)
        samples = SampleColumns(split)
        omissions = Omissions()
        self._row = {}
        for row, (sample_id, label) in enumerate(
            zip(row_ids(split, range(count), count), class_names.labels(count, omissions), strict=True)
        ):
            self._row[sample_id] = row
            samples.append(sample_id, numbering.number(label))
        names, listed = numbering.names, samples.samples()
        if not class_names.names_in_order:
            names, place = numbering.in_order()
            if class_names.are_numbers:
                # Class numbers without items are classes too.
                place = np.array([int(names[one]) for one in place], np.int64)
                names = tuple(map(str, range(int(names[-1]) + 1))) if names else ()
            listed = listed.renumber_labels(place)
        if _reads_files(dataset):
            omissions.note("EXIF orientation is left to the dataset's own loader: featcache does not rotate its images")
        listing = Listing(samples={split: listed}, classes=names, omissions=omissions)
        super().__init__(name=name, origin=name, listing=listing)

    def read(self, sample: Sample) -> Pixels:
        """The pixels of one item, uint8 (H, W) or (H, W, C). Raises ImageError naming the sample.

        Only one thread reads at a time, since datasets need not be thread-safe.
        """
        if self._lock_owner != os.getpid():
            # After a fork: the thread that held the lock does not exist in this process.
            self._renew_lock()
        if sample.id not in self._row:
            raise ImageError(f"{sample.id}: no such image in {self.origin}")
        with self._lock:
            image, _ = _item(self._dataset, self._row[sample.id], sample.id)
            return _pixels(image, sample.id)

    def stamp(self, sample: Sample) -> Stamp | None:
        """None: it cannot be known whether an item is unchanged without reading it."""
        return None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        self._lock_owner = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._renew_lock()


def _length(dataset: MapDataset, split: str) -> int:
    try:
        count = len(dataset)
    except TypeError:
        raise SourceError(f"the dataset of the split {split} has no length", hint="give a map-style dataset") from None
    if not count:
        raise SourceError(f"the dataset of the split {split} is empty")
    return count


# --- labels ------------------------------------------------------------------------------------------------


class _ClassNamesOfItems:
    """The class names of a dataset's items.

    Attributes:
        names_in_order: The class names, if all parts of the dataset have the same in the same order; else empty.
        are_numbers: Whether the classes have no names.
    """

    def __init__(self, dataset: MapDataset, classes: Sequence[str] | None, split: str) -> None:
        self._dataset, self._split = dataset, split
        own = {_class_names(leaf) for leaf in _leaves(dataset)}
        if None in own and len(own) > 1 and classes is None:
            raise SourceError(
                f"some of the datasets joined in the split {split} name their classes and others do not, so equal "
                "numbers may mean different classes",
                hint="give each of them an attribute `classes` with the class names",
            )
        self._classes = None if classes is None else tuple(str(name) for name in classes)
        self.are_numbers = classes is None and own == {None}
        self.names_in_order: tuple[str, ...] = self._classes or (own.pop() or () if len(own) == 1 else ())

    def labels(self, count: int, omissions: Omissions) -> Iterator[str | None]:
        """Iterate over the class name of each item. Reads every item if the dataset has no list of labels."""
        listed = _labels_in_list(self._dataset, count)
        if listed is None:
            omissions.note(f"labels of the split {self._split}: {count:,} items were read to get them")
        for number in range(count):
            name = f"{self._split}/{number:05d}"
            label = self._read_label(number, name) if listed is None else listed[number]
            yield self._name_of(label, number, name)

    def _read_label(self, number: int, name: str) -> int:
        try:
            return _number(_item(self._dataset, number, name)[1], name)
        except ImageError:
            # It will be reported, or left out, when its image is read.
            return UNLABELLED

    def _name_of(self, label: int, number: int, where: str) -> str | None:
        if label == UNLABELLED:
            return None
        names = _class_names(_leaf_of(self._dataset, number)) or self._classes
        if names is None:
            return str(label)
        if not 0 <= label < len(names):
            raise SourceError(f"{where}: expected a label from -1 (unlabelled) to {len(names) - 1}, got {label}")
        if self._classes is not None and names[label] not in self._classes:
            raise SourceError(
                f"{where}: the dataset names its class {names[label]!r}, which is not among {', '.join(self._classes)}",
                hint="leave classes= out: the dataset's own names are used",
            )
        return names[label]


def _is_torchs_own(dataset: Any, name: str) -> bool:
    """Whether it is torch's wrapper of that name, with an unchanged `__getitem__`."""
    home = next((one for one in type(dataset).__mro__ if "__getitem__" in vars(one)), None)
    return home is not None and home.__name__ == name and home.__module__ == "torch.utils.data.dataset"


def _leaves(dataset: Any) -> Iterator[Any]:
    """Iterate over the datasets inside wrappers that only cut or join (Subset, ConcatDataset)."""
    if _is_torchs_own(dataset, "Subset"):
        yield from _leaves(dataset.dataset)
    elif _is_torchs_own(dataset, "ConcatDataset"):
        for part in dataset.datasets:
            yield from _leaves(part)
    else:
        yield dataset


def _leaf_of(dataset: Any, number: int) -> Any:
    """The dataset inside the wrappers that an item comes from."""
    if _is_torchs_own(dataset, "Subset"):
        return _leaf_of(dataset.dataset, int(dataset.indices[number]))
    if _is_torchs_own(dataset, "ConcatDataset"):
        place = bisect.bisect_right(dataset.cumulative_sizes, number)
        before = dataset.cumulative_sizes[place - 1] if place else 0
        return _leaf_of(dataset.datasets[place], number - before)
    return dataset


def _class_names(leaf: Any) -> tuple[str, ...] | None:
    """The class names of a dataset; None if it has none, or if a `target_transform` changes the numbers."""
    classes = getattr(leaf, "classes", None)
    if not classes or isinstance(classes, str) or getattr(leaf, "target_transform", None) is not None:
        return None
    return tuple(str(name) for name in classes)


def _labels_in_list(dataset: Any, count: int) -> list[int] | None:
    """The labels in an attribute that torchvision's own `__getitem__` reads; None if there is none: read the items."""
    if _is_torchs_own(dataset, "Subset"):
        inner = _labels_in_list(dataset.dataset, len(dataset.dataset))
        return None if inner is None else [inner[int(index)] for index in dataset.indices]
    if _is_torchs_own(dataset, "ConcatDataset"):
        parts = [_labels_in_list(part, len(part)) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    home = next((one for one in type(dataset).__mro__ if "__getitem__" in vars(one)), type(dataset))
    if getattr(dataset, "target_transform", None) is not None or not home.__module__.startswith(
        "torchvision.datasets."
    ):
        return None
    # A DatasetFolder reads `samples`, and ignores its `targets`.
    samples = getattr(dataset, "samples", None)
    listed = [label for _, label in samples] if samples is not None else _attribute(dataset, ("targets", "labels"))
    numbers = np.asarray([] if listed is None else listed)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu":
        return None
    labels = [int(number) for number in numbers]
    return labels if _agrees(dataset, labels) else None


def _attribute(dataset: Any, names: Sequence[str]) -> Any:
    found = (getattr(dataset, name, None) for name in names)
    return next((one for one in found if isinstance(one, Sequence | np.ndarray) or is_tensor(one)), None)


def _agrees(dataset: MapDataset, labels: Sequence[int]) -> bool:
    """Whether some probed items have the listed labels; items that cannot be read are skipped."""
    for number in _some(len(labels), _PROBED_ITEMS):
        try:
            if _number(_item(dataset, number, str(number))[1], str(number)) != labels[number]:
                return False
        except ImageError:
            continue
    return True


def _number(label: Any, name: str) -> int:
    if label is None:
        return UNLABELLED
    number = np.asarray(label)
    if number.size != 1 or number.dtype.kind not in "iu":
        raise SourceError(f"{name}: expected a class number as label, got {label!r}")
    return int(number.reshape(()))


# --- items -------------------------------------------------------------------------------------------------


def _some(count: int, most: int) -> list[int]:
    """Up to `most` indices, spread over a dataset."""
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _probe_some(dataset: MapDataset, count: int, split: str) -> None:
    """Refuse a dataset that gives different pixels when an item is read again, or that gives none at all."""
    failed: ImageError | None = None
    readable = 0
    for number in _some(count, _PROBED_ITEMS):
        name = f"{split}/{number:05d}"
        try:
            first, *others = [_pixels(_item(dataset, number, name)[0], name) for _ in range(_PROBES)]
        except ImageError as error:
            failed = failed or error
            continue
        readable += 1
        if any(not np.array_equal(first, other) for other in others):
            raise SourceError(
                f"{name}: reading it again gives other pixels, so the dataset augments at random",
                hint="give the dataset without its random transform: a cache holds one row per image",
            )
    if failed is not None and not readable:
        raise failed


def _item(dataset: MapDataset, number: int, name: str) -> tuple[Any, Any]:
    """Read one item: (image, label)."""
    try:
        item = dataset[number]
    except Exception as error:  # User code may raise anything; in any case this image cannot be read.
        raise ImageError(f"{name}: cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise SourceError(f"{name}: expected an item (image, label), got {type(item).__name__}")
    return item[0], item[1]


def _pixels(image: Any, name: str) -> Pixels:
    if type(image).__module__.startswith("PIL."):
        from featcache.images.decoding import to_rgb

        return to_rgb(image, name)
    if is_tensor(image):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name}: expected a PIL image, an array or a tensor, got {type(image).__name__}")
    reason = reason_invalid(image)
    if reason:
        hint = "leave out ToTensor and normalisation: the backbone's own transform does both"
        raise ImageError(f"{name}: {reason}", hint=hint if image.dtype.kind == "f" else None)
    return np.ascontiguousarray(image)


def _reads_files(dataset: Any) -> bool:
    return any(callable(getattr(leaf, "loader", None)) or hasattr(leaf, "imgs") for leaf in _leaves(dataset))


# --- from Python -------------------------------------------------------------------------------------------


def _locate(given: ImagesArgument) -> Location | None:
    dataset = given.value
    if given.is_text or isinstance(dataset, list | tuple | Mapping | np.ndarray | ImageSource) or is_tensor(dataset):
        return None
    if not hasattr(dataset, "__getitem__"):
        return None
    count = _length(dataset, given.split)
    hashed = [str(count).encode(), *_indices(dataset)]
    for number in _some(count, _HASHED_ITEMS):
        try:
            hashed.append(_pixels(_item(dataset, number, str(number))[0], str(number)).tobytes())
        except ImageError:
            hashed.append(b"")
    return object_location("dataset", given, hashed, name=type(dataset).__name__)


def _indices(dataset: Any) -> Iterator[bytes]:
    """The indices of Subset wrappers, as bytes: two folds of one dataset may have the same probed items."""
    if _is_torchs_own(dataset, "Subset"):
        yield np.array([int(index) for index in dataset.indices], np.int64).tobytes()
        yield from _indices(dataset.dataset)
    elif _is_torchs_own(dataset, "ConcatDataset"):
        for part in dataset.datasets:
            yield from _indices(part)


@register("dataset", rank=12, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> TorchDatasetSource:
    given: ImagesArgument = location.given
    if given.labels is not None:
        raise SourceError("a torch dataset has its own labels", hint="leave labels= out")
    name = type(given.value).__name__
    return TorchDatasetSource(given.value, split=given.split, name=name, classes=given.classes)
