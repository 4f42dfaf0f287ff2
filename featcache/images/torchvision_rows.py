"""Makes a source of images from torchvision's data set objects: arrays in memory, or files on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import SourceError
from featcache.images.listing import Listing
from featcache.images.source import ImageSource
from featcache.images.sources.arrays import ArraySource
from featcache.images.sources.folder import FilesSource

_CHANNELS = (1, 3, 4)
_INCOMPLETE = "the copy on disk is incomplete"


def images_of(
    datasets: Mapping[str, Any],
    origin: str,
    classes: tuple[str, ...] | None,
    *,
    private: tuple[str, str] | None = None,
    native_size: tuple[int, int] | None = None,
) -> ImageSource:
    """Make a source from torchvision's objects.

    Args:
        datasets: By split, objects with public `samples` of (path, label), as DatasetFolder has them, or with public
            `data`, uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), and `targets` or `labels`, (N,) integers.
        origin: The name of the set, also for the names of its caches.
        classes: The class names; None: numbers up to the greatest label. Files need names.
        private: The names of the attributes with files and with labels, if those are private.
        native_size: (H, W) in pixels of all files.

    Returns:
        The source.

    Raises:
        SourceError: The objects contain something else.
    """
    try:
        listed = {split: _files(data, private) for split, data in datasets.items()}
        files = {split: found for split, found in listed.items() if found is not None}
        if files:
            return _files_source(files, origin, classes or (), native_size)
        rows = {split: (_pixels(data), _labels(data)) for split, data in datasets.items()}
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise SourceError(f"{origin} cannot be read: {error}") from error
    return ArraySource(rows, classes=classes, name=origin)


def classes_of(datasets: Mapping[str, Any], name: str, *, published: int | None = None) -> tuple[str, ...] | None:
    """The class names, from the attribute `classes` of the objects; None if they have none.

    Raises SourceError if their number differs from `published`, or they differ between splits.
    """
    found = {split: tuple(map(str, getattr(data, "classes", None) or ())) for split, data in datasets.items()}
    for split, names in found.items():
        # Some of torchvision's data sets number the folders that exist: a missing one would shift all labels.
        if names and published is not None and len(names) != published:
            raise SourceError(f"{name}: {len(names)} classes in {split}, {published} are published; {_INCOMPLETE}")
    if len(set(found.values())) > 1:
        raise SourceError(f"{name}: the classes differ between splits; {_INCOMPLETE}")
    return next(iter(found.values()), ()) or None


def _pixels(data: Any) -> npt.NDArray[Any]:
    """(N, H, W) or (N, H, W, C)."""
    images = np.asarray(data.data)
    channels_first = images.ndim == 4 and images.shape[1] in _CHANNELS and images.shape[3] not in _CHANNELS
    # Copied once: in the transposed view the bytes of one row are scattered over the memory.
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if channels_first else images


def _labels(data: Any) -> npt.NDArray[Any]:
    labels = np.asarray(data.targets if hasattr(data, "targets") else data.labels)
    # QMNIST has eight numbers per digit, of which the first is the class.
    return labels[:, 0] if labels.shape[1:] == (8,) else labels


def _files(data: Any, private: tuple[str, str] | None) -> Sequence[tuple[Path, int]] | None:
    if private is not None:
        return [(Path(file), int(label)) for file, label in zip(*(getattr(data, one) for one in private), strict=True)]
    listed = getattr(data, "samples", None)
    return None if listed is None else [(Path(file), int(label)) for file, label in listed]


def _files_source(
    files: Mapping[str, Sequence[tuple[Path, int]]],
    origin: str,
    classes: tuple[str, ...],
    native_size: tuple[int, int] | None,
) -> FilesSource:
    paths: dict[str, str] = {}
    listed: list[tuple[str, str, int]] = []
    for split, found in files.items():
        folder = os.path.commonpath({file.parent for file, _ in found})
        for file, label in found:
            sample_id = f"{split}/{file.relative_to(folder).as_posix()}"
            paths[sample_id] = str(file)
            listed.append((split, sample_id, label))
    listing = Listing.of_rows(listed, classes)
    return FilesSource(name=origin, origin=origin, listing=listing, paths=paths, native_size=native_size)
