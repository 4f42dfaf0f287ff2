"""Images inside Parquet files, read one row group at a time; the last few groups stay in memory.

One file, or a folder of them, as the Hugging Face Hub publishes sets. The split of a row comes from a column `split`,
else from the name of its file (train-00000-of-00002.parquet). An image's id is its split and number: "train/00012".
"""

from __future__ import annotations

import json
import os
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from featcache.errors import ImageError, SourceError
from featcache.images.listing import ListingBuilder
from featcache.images.location import ImagesArgument, Location, OpenOptions, register
from featcache.images.omissions import Omissions
from featcache.images.options import SPLITS
from featcache.images.regular import MAX_FILE_BYTES, read_regular
from featcache.images.roles import OPTIONS, PLACES, Roles, RowValues, find_roles, split_of_cell
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Stamp, slug, stamp_of
from featcache.images.sources.folder import has_images
from featcache.images.splits import SplitAmbiguous, split_in
from featcache.images.tables import (
    cells_of,
    column_names,
    kinds_in,
    names_in,
    open_parquet,
    parquet_errors,
    schema_of,
)

PREFIX: Final = "hf:"
# Decoding threads read neighbouring rows: two groups at a time, and others that are nearly done.
_MOST_CACHED: Final = 4
_ROWS_AT_ONCE: Final = 8192
# If all bytes are missing, and paths are used, the writer of the file may not have known the type of the bytes.
_STRUCT = re.compile(r"struct<.*bytes: ((large_)?binary|null)")
_BINARY: Final = ("binary", "large_binary")


# --- which columns -----------------------------------------------------------------------------------------


def image_columns(path: Path) -> list[str]:
    """The columns of a Parquet file that contain images: of type Image, of {bytes, path}, or of binary values."""
    schema = schema_of(path)
    marked = [name for name, kind in _features(schema).items() if kind.get("_type") == "Image"]
    kinds = {field.name: str(field.type) for field in schema}
    structs = [name for name, kind in kinds.items() if _STRUCT.match(kind)]
    if marked or structs:
        return [name for name in kinds if name in {*marked, *structs}]
    # If there is a column of paths, binary values are something else, perhaps digests.
    paths = {name.lower() for name in kinds if not kinds[name].endswith("binary")} & set(PLACES)
    return [] if paths else [name for name, kind in kinds.items() if kind in _BINARY]


def holds_images(path: Path, named: str | None = None) -> bool:
    """Whether a file contains images, in the column `named` or in any column."""
    if path.suffix.lower() != ".parquet":
        return False
    found = image_columns(path)
    names_places = named is not None and named not in found and named in column_names(path)
    return bool(found) and not names_places


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The descriptions of a file's columns that the package datasets writes into its metadata."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in described.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_labels(schema: Any) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(map(str, kind["names"]))
        for name, kind in _features(schema).items()
        if kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
    }


def _kinds_of(schemas: Sequence[Any]) -> dict[str, str]:
    """The kinds of columns that are known from types, if the types are the same in all files with that column."""
    kinds: dict[str, set[str | None]] = {}
    for schema in schemas:
        known = kinds_in(schema)
        for name in names_in(schema):
            kinds.setdefault(name, set()).add(known.get(name))
    return {name: kind for name, some in kinds.items() if len(some) == 1 and (kind := next(iter(some))) is not None}


# --- the source --------------------------------------------------------------------------------------------


class ParquetSource(ImageSource):
    """The rows of several files. No file stays open: each is opened for every row group that is read.

    Args:
        files: Files with one schema.
        root: The folder of the set; the names of folders below it may give the split.
        roles: The roles of the columns.
        name, origin: As in `ImageSource`.
        omissions: What was ignored so far.
        classes: The class names of the label, in order, if the files have them.
    """

    def __init__(
        self,
        files: Sequence[Path],
        root: Path,
        roles: Roles,
        *,
        name: str,
        origin: str,
        omissions: Omissions,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._files, self._image = tuple(files), roles.image
        builder = ListingBuilder(dict(roles.kinds), classes)
        builder.omissions.merge(omissions)
        self._ends, self._groups = _groups(self._files, roles)
        rows = {split: array("q") for split in SPLITS}
        for number, (split, values) in enumerate(_rows(self._files, roles, root)):
            builder.add(split, f"{split}/{len(rows[split]):0{self._width}d}", values.label, values.cells)
            rows[split].append(number)
        if not len(builder):
            raise SourceError(f"{origin}: no rows")
        listing = builder.listing(origin, label_kind=roles.label_kind)
        super().__init__(name=slug(name), origin=origin, listing=listing)
        self._rows = {
            split: np.array(rows[split], np.int64)[samples.rows_in_listing]
            for split, samples in listing.samples.items()
        }
        self._renew()

    @property
    def _width(self) -> int:
        return max(5, len(str(max(int(self._ends[-1]) - 1, 0))))

    def read(self, sample: Sample) -> bytes:
        """The bytes in the cell, or those of the file that it names. Raises ImageError."""
        number = self._number(sample)
        place = self._place(number)
        cell = self._group(place, sample.id)[number - int(self._ends[place])].as_py()
        return image_bytes(cell, sample.id, self._folder(place))

    def stamp(self, sample: Sample) -> Stamp | None:
        """("parquet", size, mtime and ctime in ns, inode of the file, the same of a file that the cell names, the row).

        None if a file is not accessible.
        """
        statuses = self._stat(sample)
        if statuses is None:
            return None
        return ("parquet", *(part for status in statuses for part in stamp_of(status)), self._number(sample))

    def mtime_ns(self, sample: Sample) -> int | None:
        """The latest mtime in ns of the files that contain the image."""
        statuses = self._stat(sample)
        return None if statuses is None else max(status.st_mtime_ns for status in statuses)

    def _stat(self, sample: Sample) -> list[os.stat_result] | None:
        try:
            number = self._number(sample)
            place = self._place(number)
            statuses = [self._files[self._groups[place][0]].stat()]
            if self._names_files(place, sample.id):
                cell = self._group(place, sample.id)[number - int(self._ends[place])].as_py()
                if isinstance(cell, dict) and not isinstance(cell.get("bytes"), bytes) and cell.get("path"):
                    statuses.append(Path(self._folder(place), cell["path"]).stat())
        except (OSError, ValueError, ImageError):
            return None
        return statuses

    def _names_files(self, place: int, sample_id: str) -> bool:
        """Whether a row group has cells without bytes, which name files instead."""
        with self._lock:
            known = self._naming.get(place)
        if known is None:
            known = self._has_empty_by_statistics(place)
            if known is None:
                group = self._group(place, sample_id)
                known = bool(group.type.num_fields) and group.combine_chunks().field("bytes").null_count > 0
            with self._lock:
                self._naming[place] = known
        return known

    def _has_empty_by_statistics(self, place: int) -> bool | None:
        """The same from the file's statistics, without reading an image; None if these are missing."""
        number, group = self._groups[place]
        try:
            chunks = open_parquet(self._files[number]).metadata.row_group(group)
            for one in (chunks.column(column) for column in range(chunks.num_columns)):
                if one.path_in_schema == f"{self._image}.bytes":
                    known = one.statistics is not None and one.statistics.has_null_count
                    return bool(one.statistics.null_count) if known else None
        except parquet_errors():
            return None
        return False

    def _folder(self, place: int) -> Path:
        return self._files[self._groups[place][0]].parent

    def _number(self, sample: Sample) -> int:
        try:
            return int(self._rows[sample.split][self._listing.samples[sample.split].find(sample.id)])
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def _place(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right")) - 1

    def _group(self, place: int, sample_id: str) -> Any:
        if self._owner != os.getpid():
            # After a fork: the thread that held the lock does not exist in this process.
            self._renew()
        with self._lock:
            file, group = self._groups[place]
            try:
                # A cached group from before a change of the file does not match its present stamp.
                now = stamp_of(self._files[file].stat())
                if self._held.get(place, (None,))[0] != now:
                    table = open_parquet(self._files[file]).read_row_group(group, columns=[self._image])
                    self._held[place] = (now, table.column(self._image))
            except parquet_errors() as error:
                self._held.pop(place, None)
                raise ImageError(f"{sample_id}: {self._files[file]} cannot be read: {error}") from error
            self._held.move_to_end(place)
            while len(self._held) > _MOST_CACHED:
                self._held.popitem(last=False)
            return self._held[place][1]

    def _renew(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._held: OrderedDict[int, tuple[tuple[int, ...], Any]] = OrderedDict()
        self._naming: dict[int, bool] = {}

    def __getstate__(self) -> dict[str, object]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_lock", "_held", "_owner", "_naming")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._renew()


def image_bytes(value: Any, sample_id: str, folder: Path) -> bytes:
    """Read the image of a cell: bytes, or {"bytes", "path"}, whose path is used if bytes are None.

    Raises ImageError for an empty cell, one that is too large, or a file that cannot be read.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        if len(content) > MAX_FILE_BYTES:
            raise ImageError(f"{sample_id}: {len(content):,} bytes, at most {MAX_FILE_BYTES:,} are read")
        return content
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not path:
        raise ImageError(f"{sample_id}: the row contains no image")
    return read_regular(folder / path, f"{sample_id}: {folder / path}")


def _groups(files: Sequence[Path], roles: Roles) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[tuple[int, int]]]:
    """The bounds of the row groups among all rows, int64 (groups + 1,), and (file, number in it) of each group."""
    sizes: list[int] = []
    groups: list[tuple[int, int]] = []
    for number, path in enumerate(files):
        file = open_parquet(path)
        if roles.image not in file.schema_arrow.names:
            raise SourceError(f"{path}: no column {roles.image!r}; it has {', '.join(file.schema_arrow.names)}")
        sizes += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        groups += [(number, group) for group in range(file.num_row_groups)]
    return np.cumsum([0, *sizes]), groups


def _rows(files: Sequence[Path], roles: Roles, root: Path) -> Iterator[tuple[str, RowValues]]:
    """Iterate over the split and the values of every row."""
    columns = [name for name in roles.columns if name != roles.image]
    for path in files:
        file, file_split = open_parquet(path), _split_of_file(path, root)
        named = _class_labels(file.schema_arrow)
        existing = [name for name in columns if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=existing):
                by_name: dict[str, list[str | None]] = dict.fromkeys(columns, [None] * batch.num_rows)
                by_name |= {name: cells_of(batch.column(name).to_pylist(), named.get(name), path) for name in existing}
                for row in range(batch.num_rows):
                    values = roles.read({name: cells[row] for name, cells in by_name.items()})
                    yield split_of_cell(values.split, str(path), file_split), values
        except parquet_errors() as error:
            raise SourceError(f"{path}: damaged Parquet file: {error}") from error


def _split_of_file(path: Path, root: Path) -> str | None:
    """The split in the name of a file, or in that of a folder between it and `root`; None if there is none."""
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
    try:
        return next((found for name in (path.stem, *reversed(folders)) if (found := split_in(name)) is not None), None)
    except SplitAmbiguous as error:
        raise SourceError(f"{path}: its name has {' and '.join(error.splits)}", hint="one split per file") from None


# --- opening -----------------------------------------------------------------------------------------------


def open_parquet_images(location: Location, opening: OpenOptions, files: Sequence[Path]) -> ParquetSource:
    """Open the images inside Parquet files of one schema. Raises SourceError, UnknownName, MissingExtra."""
    found = image_columns(files[0])
    if len(found) > 1 and location.option("image") is None:
        raise SourceError(
            f"{location.place}: the columns {', '.join(found)} could all be the image",
            hint=f"choose one of them: {location.place}?image={found[0]}",
        )
    omissions = Omissions()
    root = Path(location.place) if Path(location.place).is_dir() else Path(location.place).parent
    # A file may lack columns that others have: those of a test split often have no label.
    schemas = [schema_of(path) for path in files]
    labels = {name: classes for one in reversed(schemas) for name, classes in _class_labels(one).items()}
    column_names(files[0])
    names = dict.fromkeys(name for one in schemas for name in names_in(one) if name not in found)
    if location.option("label") is None:
        refuse_several(location.place, list(labels))
    roles = find_roles(
        location.place,
        [*found, *names],
        dict(location.options),
        opening.columns,
        omissions,
        types=_kinds_of(schemas) | dict.fromkeys(labels, "classes"),
        image=found[0] if found else None,
        label=next(iter(labels)) if len(labels) == 1 else None,
        without=found,
    )
    return ParquetSource(
        files,
        root,
        roles,
        name=Path(location.place).stem,
        origin=location.origin,
        omissions=omissions,
        classes=labels.get(roles.label or ""),
    )


def refuse_several(where: str, labels: Sequence[str]) -> None:
    """Raises SourceError if there are several columns of classes, and none of them is named label."""
    if len(labels) > 1 and not {"label", "labels"} & {name.lower() for name in labels}:
        raise SourceError(
            f"{where}: the columns {', '.join(labels)} could all be the label",
            hint=f"choose one of them: {where}?label={labels[0]}",
        )


def _locate(given: ImagesArgument) -> Location | None:
    if not given.is_text:
        return None
    if given.text.startswith(PREFIX):
        inside = ImagesArgument(value=given.text.removeprefix(PREFIX))
        if not (inside.is_folder or inside.path.suffix.lower() == ".parquet"):
            return None
        kind = "parquet" if inside.is_folder else "table"
        return Location(
            kind=kind,
            place=str(inside.path),
            options=given.at(kind, options=OPTIONS).options,
            prefix=PREFIX if inside.is_folder else "",
        )
    if given.is_folder and _files_in(given.path) and not has_images(given.path):
        return given.at("parquet", prefix=PREFIX, options=OPTIONS)
    return None


def _files_in(folder: Path) -> list[Path]:
    """The Parquet files in a folder, down to two levels of subfolders."""
    named = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    return sorted(path for pattern in named for path in folder.glob(pattern) if path.stem.lower() != "metadata")


@register("parquet", rank=40, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ParquetSource:
    files = _files_in(Path(location.place))
    if not files:
        raise SourceError(
            f"{location.place}: no Parquet files found", hint="hf: takes names of the Hub, and paths of Parquet files"
        )
    return open_parquet_images(location, opening, files)
