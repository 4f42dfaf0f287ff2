"""Which rows train a head, which choose its best epoch, which test it.

A row is one image, so every cut is by image. Nothing here knows of augmented views: they lie beside the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRows:
    """Labelled rows of one split of a cache, in ascending order.

    `source`: the split of the cache that holds them (val rows may lie in its train split).
    `rows`: int64 (n,) row numbers there, one an image; `targets`: what a head is
    to learn, int64 (n,): indices into the classes.
    """

    source: str
    rows: Rows
    targets: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, positions: Rows) -> SplitRows:
        """Some of these rows: int64 positions among them, ascending."""
        return replace(self, rows=self.rows[positions], targets=self.targets[positions])


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The rows of train, val and test (None where the cache has no labelled test images).

    `notes` says in sentences what was left out and where val came from.
    """

    train: SplitRows
    val: SplitRows
    test: SplitRows | None
    notes: tuple[str, ...] = field(default=())

    def images(self) -> dict[str, int]:
        """How many images each part has."""
        sizes = {"train": len(self.train), "val": len(self.val)}
        return sizes | ({} if self.test is None else {"test": len(self.test)})


def cut_cache(cache: FeatureCache, *, val_fraction: float, val_seed: int) -> Cut:
    """Cut a cache into train, val and test.

    Val is the cache's own val split if it has labelled images, else cut from train by `cut_images`.
    Raises HeadError where no head could be trained or chosen: no train split, no labels, a single class, too few
    images, a class missing on one side.
    """
    _require_two_classes(cache)
    notes: list[str] = []
    labels = {split: cache[split].read_labels() for split in cache.splits}
    images = {split: _labelled_images(cache, split, labels[split], notes) for split in cache.splits}
    val_source = "val" if len(images.get("val", ())) else "train"
    if val_source == "val":
        notes.append(f"val is the set's own split of {len(images['val'])} images")
    else:
        images["train"], images["val"] = _cut_of(images.pop("train"), val_fraction=val_fraction, val_seed=val_seed)
    train = _split_rows("train", images["train"], labels["train"])
    val = _split_rows(val_source, images["val"], labels[val_source])
    for name, part in (("train", train), ("val", val)):
        _require_every_class(part, name, cache)
    has_test = len(images.get("test", ())) > 0
    test = _split_rows("test", images["test"], labels["test"]) if has_test else None
    return Cut(train=train, val=val, test=test, notes=tuple(notes))


def cut_images(images: int, *, val_fraction: float, val_seed: int) -> tuple[Rows, Rows]:
    """Positions of train and val among `images`, each ascending, int64.

    `torch.randperm(images)` from a generator seeded with `val_seed`; the first `images * (1 - val_fraction)` of
    it, rounded, are train.
    Raises HeadError if either side would be empty.
    """
    import torch

    train = round(images * (1 - val_fraction))
    if not 0 < train < images:
        raise HeadError(
            f"{images} labelled train images leave {train} for train and {images - train} for val",
            hint="more images, or another --val-fraction",
        )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(val_seed)).numpy()
    in_val = np.zeros(images, np.bool_)
    in_val[order[train:]] = True
    del order
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def _cut_of(images: Rows, *, val_fraction: float, val_seed: int) -> tuple[Rows, Rows]:
    count = len(images)
    if images[-1] == count - 1:
        # Every image has a label, so positions are images; of ten million, their numbers are 80 MB.
        del images
        return cut_images(count, val_fraction=val_fraction, val_seed=val_seed)
    train, val = cut_images(count, val_fraction=val_fraction, val_seed=val_seed)
    return images[train], images[val]


def train_images(cache: FeatureCache) -> SplitRows:
    """All labelled train images. Raises HeadError where no head could be trained on them."""
    _require_two_classes(cache)
    labels = cache["train"].read_labels()
    return _split_rows("train", _labelled_images(cache, "train", labels, []), labels)


def _require_two_classes(cache: FeatureCache) -> None:
    if "train" not in cache.splits:
        raise HeadError(
            f"{cache.name} has no train split, only {', '.join(cache.splits) or 'no rows at all'}",
            hint="extract with --split train, or arrange the images as train/<class>/...",
        )
    if len(cache.classes) < 2:
        raise HeadError(
            f"expected at least 2 classes, got {len(cache.classes)} ({', '.join(cache.classes) or 'none'})",
            hint="one folder a class; a head tells classes apart",
        )


def _labelled_images(cache: FeatureCache, split: str, labels: Rows, notes: list[str]) -> Rows:
    strange = np.flatnonzero((labels < -1) | (labels >= len(cache.classes)))
    if len(strange):
        raise HeadError(
            f"expected labels from -1 to {len(cache.classes) - 1}, "
            f"got {int(labels[strange[0]])} in {split} row {int(strange[0])}",
            hint="extract again: the labels do not belong to these classes",
        )
    images: Rows = np.flatnonzero(labels >= 0)
    if split == "train" and len(images) == 0:
        raise HeadError(
            f"none of the {len(labels)} train rows of {cache.name} has a label",
            hint="labels come from folders, one a class",
        )
    if len(images) < len(labels):
        notes.append(f"{len(labels) - len(images)} of {len(labels)} {split} images are unlabelled and left out")
    return images


def _split_rows(source: str, rows: Rows, labels: Rows) -> SplitRows:
    return SplitRows(source=source, rows=rows, targets=labels[rows].astype(np.int64, copy=False))


def _require_every_class(part: SplitRows, name: str, cache: FeatureCache) -> None:
    present = np.bincount(part.targets, minlength=len(cache.classes)) > 0
    missing = [label for label, there in zip(cache.classes, present, strict=True) if not there]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise HeadError(
            f"expected every class in {name} ({len(part)} images), but found none of {shown} there in {cache.name}",
            hint="more images a class (a higher --limit), or another --val-fraction or --val-seed",
        )
