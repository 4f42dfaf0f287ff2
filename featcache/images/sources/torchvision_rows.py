"""What torchvision's data set objects hold, as rows of pixels or of files.

These are private attributes of torchvision's, so each is named in one place, and a test reads every set with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayRows:
    """One split in memory: images (N, H, W) or (N, H, W, C) uint8, labels (N,)."""

    images: Any
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """One split on disk: files below `folder`, labels beside them (None: unlabelled)."""

    folder: Path
    files: Sequence[Path | str]
    labels: Sequence[int | None]


Extract = Callable[[Any], ArrayRows | FileRows]


def arrays(images: str, labels: str) -> Extract:
    """Images and labels as they are, in the attributes of these names."""
    return lambda data: ArrayRows(
        images=np.asarray(getattr(data, images)), labels=np.asarray(getattr(data, labels), dtype=np.int64)
    )


def channels_first(data: Any) -> ArrayRows:
    """`data` (N, C, H, W) and `labels`, as stl10 and svhn have them."""
    # A copy, once: rows of the transposed view would be gathered from all over the memory.
    images = np.ascontiguousarray(np.asarray(data.data).transpose(0, 2, 3, 1))
    return ArrayRows(images=images, labels=np.asarray(data.labels, dtype=np.int64))


def qmnist(data: Any) -> ArrayRows:
    """The class is the first of eight numbers that are known of a digit."""
    return ArrayRows(images=np.asarray(data.data), labels=np.asarray(data.targets[:, 0], dtype=np.int64))


def fer2013(data: Any) -> ArrayRows:
    """A list of (image, label); without labels in one of the two ways in which it is published."""
    images = np.stack([np.asarray(image) for image, _ in data._samples])
    labels = [-1 if label is None else label for _, label in data._samples]
    return ArrayRows(images=images, labels=np.asarray(labels, dtype=np.int64))


class HdfRows:
    """Rows (H, W, C) of an array in an HDF5 file, opened for each: nothing stays open that a fork could break."""

    def __init__(self, path: Path, array: str) -> None:
        self._path, self._array = path, array
        self.shape: tuple[int, ...] = self.read(lambda found: found.shape)

    def read(self, take: Callable[[Any], Any]) -> Any:
        """What `take` makes of the array."""
        import h5py

        with h5py.File(self._path, "r") as file:
            return take(file[self._array])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Any:
        return self.read(lambda found: found[row])


def pcam(data: Any) -> ArrayRows:
    """Two HDF5 files, far too large for memory."""
    paths = {kind: data._base_folder / names[0] for kind, names in data._FILES[data._split].items()}
    labels = HdfRows(paths["targets"], "y").read(lambda found: found[:])
    return ArrayRows(images=HdfRows(paths["images"], "x"), labels=labels.reshape(-1).astype(np.int64))


def files(paths: str, labels: str, folder: Callable[[Any], Any]) -> Extract:
    """Files and labels in the attributes of these names; `folder` holds the files."""
    return lambda data: FileRows(folder=Path(folder(data)), files=getattr(data, paths), labels=getattr(data, labels))


def pairs(listed: str, folder: Callable[[Any], Any]) -> Extract:
    """Pairs of (path, label) in the attribute of this name; `folder` holds the files."""

    def extract(data: Any) -> FileRows:
        found = getattr(data, listed)
        return FileRows(
            folder=Path(folder(data)), files=[path for path, _ in found], labels=[label for _, label in found]
        )

    return extract


def caltech(folder: str, file_name: Callable[[int, int], str]) -> Extract:
    """Files that torchvision numbers instead of listing."""

    def extract(data: Any) -> FileRows:
        root = Path(data.root) / folder
        paths = [
            root / data.categories[label] / file_name(label, number)
            for label, number in zip(data.y, data.index, strict=True)
        ]
        return FileRows(folder=root, files=paths, labels=data.y)

    return extract


def inaturalist(data: Any) -> FileRows:
    """Pairs of (label, file name)."""
    root = Path(data.root)
    paths = [root / data.all_categories[label] / name for label, name in data.index]
    return FileRows(folder=root, files=paths, labels=[label for label, _ in data.index])


def gtsrb(data: Any) -> FileRows:
    """Pairs of (path, label); in train the label is the folder's own number, so that a missing folder shifts none."""
    paths = [Path(path) for path, _ in data._samples]
    labels = [label for _, label in data._samples]
    if data._split == "train":
        labels = [int(path.parent.name) for path in paths]
    return FileRows(folder=Path(data._target_folder), files=paths, labels=labels)
