"""The images of WebDataset tars as rows: the position of each, and the annotations with the same key."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from featcache.errors import SourceError
from featcache.images.cells import Cells, CellsBuilder
from featcache.images.image_paths import is_image
from featcache.images.shared_file import SharedFile
from featcache.images.sources.tar import refuse_holes
from featcache.images.tar_headers import TarHeader, tar_headers
from featcache.images.webdataset_text import CLASS_FIELDS, MOST_BYTES, NOTHING, Annotation, parse_annotation

MOST_COLUMNS: Final = 256
"""Each column costs 16 bytes per image; further ones are left out."""


class SplitRows:
    """The images of one split, in the order of the tars."""

    def __init__(self) -> None:
        self._ids = CellsBuilder()
        self._places = (array("q"), array("q"), array("q"))
        self._labels, self._named = CellsBuilder(), CellsBuilder()
        self._columns: dict[str, CellsBuilder] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns so far."""
        return tuple(self._columns)

    def add(self, sample_id: str, tar: int, offset: int, size: int) -> int:
        """Add an image; returns its row."""
        self._ids.append(sample_id)
        for column, value in zip(self._places, (tar, offset, size), strict=True):
            column.append(value)
        return len(self) - 1

    def put(self, row: int, annotation: Annotation) -> None:
        """Set the annotation of a row."""
        for column, text in ((self._labels, annotation.label), (self._named, annotation.named)):
            if text is not None:
                column.put(row, text)
        for name, text in annotation.cells.items():
            self._columns.setdefault(name, CellsBuilder()).put(row, text)

    def places(self) -> npt.NDArray[np.int64]:
        """The tar's number, the offset in it and the size in bytes of each image: int64 (n, 3)."""
        columns: list[npt.NDArray[Any]] = [np.array(column, np.int64) for column in self._places]
        return np.stack(columns, axis=1)

    def ids(self) -> Cells:
        """The id of every row."""
        return self._ids.cells()

    def labels(self) -> Iterator[tuple[str | None, str | None]]:
        """The class of every row from its `.cls`, and from its `.json`."""
        return zip(self._labels.cells(len(self)), self._named.cells(len(self)), strict=True)

    def cells(self, name: str) -> Cells:
        """A column, one cell per row."""
        return self._columns.get(name, CellsBuilder()).cells(len(self))

    def drop(self, name: str) -> None:
        """Remove a column."""
        self._columns.pop(name, None)


class TarMembers:
    """Adds the images of one tar to `rows`. Members with the same key belong together, wherever they are in the tar.

    Raises SourceError for a tar that is damaged, two images with the same key, an image that is a link or has holes,
    and an annotation that is too long or cannot be read. Members that are left out are counted.
    """

    def __init__(self, rows: SplitRows, columns: dict[str, None], left_out: Counter[str], image: str | None) -> None:
        """`columns`: the column names so far; `image`: the extension of images, None: any that is not compound."""
        self._rows, self._columns, self._left_out, self._image = rows, columns, left_out, image
        self._row_of: dict[str, int] = {}
        self._early: dict[str, Annotation] = {}
        self._kinds: dict[str, None] = {}

    def add_all(self, file: SharedFile, path: Path, *, number: int, prefix: str) -> None:
        """Read the tar at `path`, number `number` of the set; its ids begin with `prefix`."""
        for header in tar_headers(file, path):
            key, kind = parts_of(header.name)
            if kind and self._is_image(header.name, kind):
                self._add_image(header, key, kind, path, number=number, prefix=prefix)
            elif kind in MOST_BYTES and header.is_file:
                self._add_annotation(key, _read_annotation(file, header, kind, path))
            elif header.is_file and is_image(header.name):
                self._left_out[f"images .{kind}, next to the ones that are read"] += 1
        if self._early:
            self._left_out["samples with a class or columns and no image"] += len(self._early)

    def _is_image(self, name: str, kind: str) -> bool:
        is_requested = "." not in kind if self._image is None else kind == self._image
        return is_requested and is_image(_clean(name))

    def _add_image(self, header: TarHeader, key: str, kind: str, path: Path, *, number: int, prefix: str) -> None:
        _refuse_elsewhere(header, path)
        if not header.is_file:
            return
        self._kinds[kind] = None
        if key in self._row_of:
            self._refuse_second(f"{path}: {header.name}", key)
        row = self._rows.add(f"{prefix}/{_clean(header.name)}", number, header.offset, header.size)
        self._row_of[key] = row
        self._put(row, self._early.pop(key, NOTHING))

    def _refuse_second(self, where: str, key: str) -> NoReturn:
        choice = " or ".join(f"wds:PATTERN?image={one}" for one in self._kinds)
        hint = f"choose one: {choice}" if len(self._kinds) > 1 else "pack it again"
        raise SourceError(f"{where} is a second image of the sample {key}", hint=hint)

    def _add_annotation(self, key: str, annotation: Annotation) -> None:
        if key in self._row_of:
            self._put(self._row_of[key], annotation)
        else:
            self._early[key] = self._early.get(key, NOTHING).join(annotation)

    def _put(self, row: int, annotation: Annotation) -> None:
        for name in annotation.cells:
            if len(self._columns) < MOST_COLUMNS:
                self._columns[name] = None
        kept = {name: cell for name, cell in annotation.cells.items() if name in self._columns}
        if len(kept) < len(annotation.cells):
            self._left_out[f"cells of more than {MOST_COLUMNS} columns"] += len(annotation.cells) - len(kept)
        self._rows.put(row, annotation._replace(cells=kept))


def parts_of(name: str) -> tuple[str, str]:
    """The key of a member's sample, with its folder, and its kind: the name after the first dot, in lower case."""
    folder, slash, base = _clean(name).rpartition("/")
    key, _, kind = base.partition(".")
    # As in the package webdataset, a name that begins with a dot has no key.
    return f"{folder}{slash}{key}", kind.lower() if key else ""


def labels_of(rows: Mapping[str, SplitRows], left_out: Counter[str]) -> dict[str, Cells]:
    """The class of every row: from `.cls`, else from `.json`; rows where they differ are counted.

    Columns that only repeat the class are removed.
    """
    labels = {}
    for split, some in rows.items():
        builder = CellsBuilder()
        for label, named in some.labels():
            builder.append(label or named)
            if label and named and label != named:
                left_out["classes in .json that differ from .cls"] += 1
        labels[split] = builder.cells()
    for name in CLASS_FIELDS:
        if all(_repeats(some.cells(name), labels[split]) for split, some in rows.items()):
            for some in rows.values():
                some.drop(name)
    return labels


def _repeats(cells: Cells, labels: Cells) -> bool:
    return all(cell is None or cell == label for cell, label in zip(cells, labels, strict=True))


def _read_annotation(file: SharedFile, header: TarHeader, kind: str, path: Path) -> Annotation:
    where = f"{path}: {header.name}"
    if header.size > MOST_BYTES[kind] or header.has_holes:
        raise SourceError(
            f"{where}: {header.size:,} bytes, at most {MOST_BYTES[kind]:,} in one piece are read next to an image",
            hint="pack the tar again without it",
        )
    try:
        return parse_annotation(kind, file.read_at(header.size, header.offset), where)
    except OSError as error:
        raise SourceError(f"{where}: cannot be read: {error.strerror or error}") from error


def _refuse_elsewhere(header: TarHeader, path: Path) -> None:
    if header.has_holes:
        refuse_holes(header.name, path)
    if header.is_link:
        raise SourceError(
            f"{path}: the image {header.name} is a link to {header.link}",
            hint="pack it again with `tar --dereference --hard-dereference`",
        )


def _clean(name: str) -> str:
    return name.removeprefix("./")
