"""Images that are arrays: in memory, or in any object that returns one row at a time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.labels import Labels, read_labels, unify_labels
from featcache.images.listing import Listing, join_columns
from featcache.images.location import ImagesArgument, Location, OpenOptions, object_location, register
from featcache.images.names import join_classes
from featcache.images.pixels import reason_invalid
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Pixels, Stamp, check_splits, row_ids


class IndexedImages(Protocol):
    """Images by index: an array (N, H, W) or (N, H, W, C), a list of arrays of any sizes, a memory map, ..."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


class ArraySource(ImageSource):
    """uint8 arrays as images; a row's id is its split and number, "train/00012".

    Args:
        images: uint8 (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4), or a list of such images; or a
            mapping of split to (images, labels).
        labels: N class numbers, -1 for unlabelled, or N class names; None: all unlabelled. `read_labels` has the
            other possible types.
        classes: The class names; None: class numbers are named "0", "1", ... up to the greatest label.
        name: The name of the source, also for the names of caches.
        split: The split of the images, if they are not a mapping.
        numbers: The numbers in the ids by split, if they are not 0, 1, 2, ...

    Raises:
        SourceError: Another dtype or shape, labels without a class, or a different number of them.
    """

    def __init__(
        self,
        images: IndexedImages | Mapping[str, tuple[IndexedImages, Any]],
        labels: Any = None,
        classes: Sequence[str] | None = None,
        *,
        name: str = "arrays",
        split: str = "train",
        numbers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        given = images if isinstance(images, Mapping) else {split: (images, labels)}
        check_splits(given)
        self._images = {part: _require_valid(rows, part) for part, (rows, _) in given.items()}
        counts = {part: len(rows) for part, rows in self._images.items()}
        labels_of = unify_labels(
            {part: read_labels(own, counts[part], part, classes) for part, (_, own) in given.items()}
        )
        ids = {part: row_ids(part, (numbers or {}).get(part, range(count)), count) for part, count in counts.items()}
        self._row = {sample_id: row for part in ids for row, sample_id in enumerate(ids[part])}
        numbers_of, names = _join_labels(labels_of)
        rows = ((part, i, n) for part in ids for i, n in zip(ids[part], numbers_of[part], strict=True))
        columns = join_columns({part: one.columns for part, one in labels_of.items()}, counts)
        listing = Listing.of_rows(rows, names, columns)
        super().__init__(name=name, origin=name, listing=listing, native_size=_size_of_all(self._images))

    def read(self, sample: Sample) -> Pixels:
        """The pixels of the row, unchanged and read-only: uint8 (H, W) or (H, W, C). Raises ImageError."""
        try:
            row = self._images[sample.split][self._row[sample.id]]
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None
        except OSError as error:
            raise ImageError(f"{sample.id}: cannot be read: {error}") from error
        pixels = np.asarray(row).view()
        reason = reason_invalid(pixels)
        if reason:
            raise ImageError(f"{sample.id}: {reason}")
        pixels.flags.writeable = False
        return pixels

    def stamp(self, sample: Sample) -> Stamp | None:
        """None: reading a row is free, and a write to it cannot be detected."""
        return None


def _require_valid(rows: IndexedImages, split: str) -> IndexedImages:
    if not len(rows):
        raise SourceError(f"the split {split} has no images")
    # For one array the first row is enough; the images of a list may differ.
    for number in range(1 if hasattr(rows, "shape") else len(rows)):
        reason = reason_invalid(np.asarray(rows[number]))
        if reason:
            raise SourceError(f"image {number} of the split {split}: {reason}", hint=_hint(rows[number]))
    return rows


def _hint(row: Any) -> str | None:
    shape = np.asarray(row).shape
    if np.asarray(row).dtype.kind == "f":
        return "give the pixels as they were before scaling: values 0 to 255 as uint8"
    channels_first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    return "channels must be last: images.transpose(0, 2, 3, 1)" if channels_first else None


def _join_labels(known: Mapping[str, Labels]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The class numbers of each split as indices into the joined classes, and these."""
    names, places = join_classes({part: one.classes for part, one in known.items()})
    return {
        part: [int(places[part][n]) if 0 <= n < len(places[part]) else n for n in one.numbers]
        for part, one in known.items()
    }, names


def _size_of_all(images: Mapping[str, IndexedImages]) -> tuple[int, int] | None:
    sizes: set[tuple[int, int]] = set()
    for rows in images.values():
        whole = getattr(rows, "shape", None)
        shapes = [np.shape(rows[row])[:2] for row in range(len(rows))] if whole is None else [whole[1:3]]
        sizes.update((int(height), int(width)) for height, width in shapes)
    return sizes.pop() if len(sizes) == 1 else None


# --- from Python -------------------------------------------------------------------------------------------

# An array is identified by a digest of its bytes: of all rows up to this size, else of rows spread over the array.
_MOST_HASHED_BYTES = 256 << 20
_LEAST_HASHED_ROWS = 64
# Grey images are assumed to be at least this wide.
_NARROWEST = 8


def _locate(given: ImagesArgument) -> Location | None:
    rows = as_rows(given.value)
    if rows is None:
        return None
    _refuse_one_image(rows)
    hashed = (np.asarray(rows[row]) for row in _rows_to_hash(rows))
    shape = str(getattr(rows, "shape", len(rows))).encode()
    content = itertools.chain((shape,), (part for row in hashed for part in (str(row.shape).encode(), row.tobytes())))
    return object_location("array", given, content)


def _rows_to_hash(rows: IndexedImages) -> list[int]:
    """The rows whose bytes identify an array: all, unless they are too large."""
    if not len(rows):
        return []
    count = max(_LEAST_HASHED_ROWS, _MOST_HASHED_BYTES // max(1, np.asarray(rows[0]).nbytes))
    if count >= len(rows):
        return list(range(len(rows)))
    return sorted({round(place) for place in np.linspace(0, len(rows) - 1, count)})


def _refuse_one_image(rows: IndexedImages) -> None:
    """Refuse an array (H, W, 3): it is one image, although it could be H grey images that are 3 pixels wide."""
    shape: tuple[int, ...] = getattr(rows, "shape", ())
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) >= _NARROWEST:
        raise SourceError(
            f"an array of shape {tuple(shape)} is one image (H, W, C), expected several (N, H, W) or (N, H, W, C)",
            hint="images[None] if it is one image, images[..., None] if these are grey images",
        )


def as_rows(value: Any) -> IndexedImages | None:
    """An array or a list of arrays as images by index, channels last; None for anything else."""
    if is_tensor(value):
        found = value.detach().cpu().numpy()
        return found if found.ndim < 4 else np.moveaxis(found, 1, -1)  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray) and value.ndim >= 3:
        return value
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return value if is_list and all(isinstance(one, np.ndarray) and one.ndim >= 2 for one in value) else None


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor. Does not import torch: if there is a tensor, torch is already imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@register("array", rank=10, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ArraySource:
    given: ImagesArgument = location.given
    rows = as_rows(given.value)
    if rows is None:
        raise SourceError(f"expected an array of images, got {type(given.value).__name__}")
    return ArraySource(rows, given.labels, given.classes, name="array", split=given.split)
