"""Images that are arrays already: from memory, or from anything that hands out one row at a time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.labels import Labels, labels_alike, read_labels
from featcache.images.listing import Listing, join_columns
from featcache.images.location import Given, Location, Opening, object_location, register
from featcache.images.names import join_classes
from featcache.images.pixels import misfit
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Pixels, Stamp, check_splits, numbered_ids


class Rows(Protocol):
    """Images by number: an array (N, H, W) or (N, H, W, C), a list of arrays of any sizes, a memory map, ..."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


class ArraySource(ImageSource):
    """uint8 arrays as images; a row's id is its split and number, "train/00012".

    Args:
        images: (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4) uint8, or a list of such images; or a
            mapping of split to (images, labels).
        labels: N class numbers, -1 for unlabelled, or N class names; None: all unlabelled. `read_labels` says what
            else they may be.
        classes: names; left out, class numbers are called "0", "1", ... up to the greatest label.
        name: for the names of caches, and what names this source in a selection.
        split: which split the images are, where no mapping is given.
        numbers: the numbers in the ids by split, where they are not 0, 1, 2, ...

    Raises SourceError for another dtype or shape, labels without a class, or a different number of them.
    """

    def __init__(
        self,
        images: Rows | Mapping[str, tuple[Rows, Any]],
        labels: Any = None,
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
        known = labels_alike(
            {part: read_labels(found, counts[part], part, classes) for part, (_, found) in given.items()}
        )
        ids = {
            part: numbered_ids(part, (numbers or {}).get(part, range(count)), count) for part, count in counts.items()
        }
        self._row = {sample_id: row for part in ids for row, sample_id in enumerate(ids[part])}
        numbers_of, names = _numbered(known)
        rows = ((part, i, n) for part in ids for i, n in zip(ids[part], numbers_of[part], strict=True))
        listing = Listing.of_rows(rows, names, join_columns({part: one.columns for part, one in known.items()}, counts))
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
        """None: reading a row costs nothing, and nothing shows whether it was written to."""
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


def _numbered(known: Mapping[str, Labels]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The class numbers of each split among the classes of all."""
    names, places = join_classes({part: one.classes for part, one in known.items()})
    return {
        part: [int(places[part][n]) if 0 <= n < len(places[part]) else n for n in one.numbers]
        for part, one in known.items()
    }, names


def _size_of_all(images: Mapping[str, Rows]) -> tuple[int, int] | None:
    sizes: set[tuple[int, int]] = set()
    for rows in images.values():
        whole = getattr(rows, "shape", None)
        shapes = [np.shape(rows[row])[:2] for row in range(len(rows))] if whole is None else [whole[1:3]]
        sizes.update((int(height), int(width)) for height, width in shapes)
    return sizes.pop() if len(sizes) == 1 else None


# --- from Python -------------------------------------------------------------------------------------------

# The bytes of rows tell one array from another: of all where they are so many, else of rows from all over.
_BYTES_THAT_TELL = 256 << 20
_ROWS_THAT_TELL = 64
# Grey images are no narrower.
_NARROWEST = 8


def _locate(given: Given) -> Location | None:
    rows = as_rows(given.value)
    if rows is None:
        return None
    _refuse_one_image(rows)
    told = (np.asarray(rows[row]) for row in _rows_that_tell(rows))
    shape = str(getattr(rows, "shape", len(rows))).encode()
    content = itertools.chain((shape,), (part for row in told for part in (str(row.shape).encode(), row.tobytes())))
    return object_location("array", given, content)


def _rows_that_tell(rows: Rows) -> list[int]:
    """The rows whose bytes name an array: all, unless these are very many bytes."""
    if not len(rows):
        return []
    count = max(_ROWS_THAT_TELL, _BYTES_THAT_TELL // max(1, np.asarray(rows[0]).nbytes))
    if count >= len(rows):
        return list(range(len(rows)))
    return sorted({round(place) for place in np.linspace(0, len(rows) - 1, count)})


def _refuse_one_image(rows: Rows) -> None:
    """An array (H, W, 3) is one image, though it could be H grey ones that are 3 pixels wide."""
    shape: tuple[int, ...] = getattr(rows, "shape", ())
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) >= _NARROWEST:
        raise SourceError(
            f"an array of shape {tuple(shape)} is one image (H, W, C), expected several (N, H, W) or (N, H, W, C)",
            hint="images[None] if it is one image, images[..., None] if these are grey images",
        )


def as_rows(value: Any) -> Rows | None:
    """An array or a list of arrays as rows of images, channels last; None for anything else."""
    if is_tensor(value):
        found = value.detach().cpu().numpy()
        return found if found.ndim < 4 else np.moveaxis(found, 1, -1)  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray) and value.ndim >= 3:
        return value
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return value if is_list and all(isinstance(one, np.ndarray) and one.ndim >= 2 for one in value) else None


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch, which is not imported for that: what made the tensor has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@register("array", rank=10, locate=_locate)
def _open(location: Location, opening: Opening) -> ArraySource:
    given: Given = location.given
    rows = as_rows(given.value)
    if rows is None:
        raise SourceError(f"expected an array of images, got {type(given.value).__name__}")
    return ArraySource(rows, given.labels, given.classes, name="array", split=given.split)
