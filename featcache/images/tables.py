"""Reads tables of images and targets row by row: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from featcache.errors import MissingExtra, SourceError
from featcache.images.regular import open_regular


@dataclass(frozen=True, kw_only=True)
class TableBytes:
    """A table inside an archive."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        """The extension of its name."""
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return self.name


Table = Path | TableBytes
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_ROWS_AT_ONCE = 8192
_DELIMITERS = ",;\t"
# The kind of a Parquet column, by the beginning of its Arrow type.
_KINDS = {"float": "numbers", "double": "numbers", "halffloat": "numbers", "decimal": "numbers", "list": "lists"}
_NO_CELLS = ("struct", "binary", "large_binary", "fixed_size_binary", "map", "extension")
# Lists of floats are embeddings or boxes; as lists of classes, each number would become a class.
_NO_ITEMS = (*_NO_CELLS, "float", "double", "halffloat", "decimal", "list", "large_list", "fixed_size_list")

#: The cells of a row by column; None for a missing value.
Row = Mapping[str, str | None]


def is_table(path: Path) -> bool:
    """Whether a file name has the extension of a table."""
    return path.suffix.lower() in SUFFIXES


def is_parquet(path: Table) -> bool:
    """Whether a file name has the extension of a Parquet file."""
    return path.suffix.lower() == ".parquet"


def column_names(path: Table) -> tuple[str, ...]:
    """The names of the columns of texts, numbers or lists of these, in order, without surrounding blanks.

    Raises:
        SourceError: The file is not a table, or has two columns of the same name.
        MissingExtra: A Parquet file, without pyarrow.
    """
    if is_parquet(path):
        names = names_in(schema_of(path))
    else:
        names = list(_keys(path)) if path.suffix.lower() == ".jsonl" else next(_csv_cells(path), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: the column {', '.join(map(repr, twice))} occurs twice", hint="rename one")
    return tuple(names)


def _holds_cells(arrow_type: Any) -> bool:
    """Whether the values of a Parquet column are texts, numbers or lists of these."""
    items = getattr(arrow_type, "value_type", None)
    is_list = "list" in str(arrow_type).partition("<")[0]
    return not str(arrow_type).startswith(_NO_CELLS) and not (is_list and str(items).startswith(_NO_ITEMS))


def column_kinds(path: Table) -> dict[str, str]:
    """The kinds of the columns that are known from their types."""
    if not is_parquet(path):
        return {}
    return kinds_in(schema_of(path))


def names_in(schema: Any) -> list[str]:
    """The columns of an Arrow schema whose values are texts, numbers or lists of these."""
    return [field.name for field in schema if _holds_cells(field.type)]


def kinds_in(schema: Any) -> dict[str, str]:
    """The kinds of the columns of an Arrow schema that are known from their types."""
    found = {field.name: _kind_of(str(field.type)) for field in schema}
    return {name: kind for name, kind in found.items() if kind is not None}


def _kind_of(arrow_type: str) -> str | None:
    return next((kind for start, kind in _KINDS.items() if arrow_type.removeprefix("large_").startswith(start)), None)


def table_rows(path: Table, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """Iterate over the rows of a table.

    A list is joined with `;`; an empty list is `;`. A column that does not exist has only missing values.

    Args:
        path: The table.
        columns: The columns to read.

    Yields:
        For each row the cells of these columns as text, in their order.

    Raises:
        SourceError: As `column_names` does, and for a row with more cells than there are columns.
        MissingExtra: A Parquet file, without pyarrow.
    """
    if is_parquet(path):
        yield from _parquet_rows(path, columns)
    elif path.suffix.lower() == ".jsonl":
        for values in _json_lines(path):
            yield tuple(text_of(values.get(name)) for name in columns)
    else:
        yield from _csv_rows(path, columns)


def text_of(value: object) -> str | None:
    """A value as the text of a cell; None if it is missing, or of a type that a cell cannot represent."""
    if value is None or isinstance(value, dict | bytes):
        return None
    if isinstance(value, list | tuple):
        if any(isinstance(one, list | tuple | dict | bytes) for one in value):
            return None
        texts = [str(one) for one in value if one is not None]
        # The separator after a single item distinguishes it from a class.
        return ";".join(texts) + ("" if len(texts) > 1 else ";")
    return None if isinstance(value, float) and math.isnan(value) else str(value)


def cells_of(values: Sequence[Any], names: Sequence[str] | None, where: object) -> list[str | None]:
    """The cells of a column of Arrow values; class numbers are replaced by `names`, if these are given.

    Raises SourceError for a number without a name; `where` is the table in its message.
    """
    if names is None:
        return [text_of(value) for value in values]
    invalid = next((value for value in values if value is not None and not -1 <= value < len(names)), None)
    if invalid is not None:
        raise SourceError(f"{where}: expected labels from -1 to {len(names) - 1}, got {invalid}")
    return [None if value is None or value < 0 else str(names[value]) for value in values]


# --- text --------------------------------------------------------------------------------------------------


def _text(path: Table) -> IO[str]:
    if isinstance(path, TableBytes):
        return io.TextIOWrapper(io.BytesIO(path.content), encoding="utf-8-sig", newline="")
    descriptor = open_regular(path, str(path), error=SourceError)
    return io.TextIOWrapper(os.fdopen(descriptor, "rb"), encoding="utf-8-sig", newline="")


def _csv_cells(path: Table) -> Iterator[list[str]]:
    try:
        with _text(path) as file:
            header = file.readline()
            delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(header)
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            yield [name.strip() for name in next(rows, [])]
            # Spreadsheets write empty rows as delimiters only.
            yield from (row for row in rows if any(map(str.strip, row)))
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise SourceError(f"{path}: invalid UTF-8 at byte {error.start:,}", hint=hint) from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a table: {error}") from error


def _delimiter(header: str) -> str:
    """The delimiter of cells: the most frequent of `,`, `;` and tab in the header line."""
    return max(_DELIMITERS, key=header.count)


def _csv_rows(path: Table, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    names = column_names(path)
    places = [names.index(name) if name in names else None for name in columns]
    rows = _csv_cells(path)
    next(rows, None)
    for number, cells in enumerate(rows, start=2):
        if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
            raise SourceError(
                f"{path} row {number}: expected {len(names)} cells, got {len(cells)}",
                hint="quote a cell that holds the delimiter",
            )
        yield tuple(cells[place] if place is not None and place < len(cells) else None for place in places)


def _json_lines(path: Table) -> Iterator[dict[str, Any]]:
    try:
        with _text(path) as file:
            for number, line in enumerate(file, start=1):
                values = json.loads(line) if line.strip() else {}
                if not isinstance(values, dict):
                    raise SourceError(
                        f"{path} line {number}: expected an object of columns, got {type(values).__name__}"
                    )
                if values:
                    yield values
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON lines: {error}") from error


def _keys(path: Table) -> dict[str, None]:
    return {name: None for values in _json_lines(path) for name, value in values.items() if not isinstance(value, dict)}


# --- Parquet -----------------------------------------------------------------------------------------------


def schema_of(path: Table) -> Any:
    """A Parquet file's Arrow schema. Raises SourceError for another kind of file, MissingExtra without pyarrow."""
    return open_parquet(path).schema_arrow


def open_parquet(path: Table) -> Any:
    """The pyarrow.parquet.ParquetFile of a file. Raises SourceError, MissingExtra."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra("a Parquet file", package="pyarrow", extra="parquet") from error
    try:
        if isinstance(path, TableBytes):
            return ParquetFile(io.BytesIO(path.content))
        # First refuse anything but a regular file: Arrow would block on a pipe.
        os.close(open_regular(path, str(path), error=SourceError))
        return ParquetFile(path)
    except parquet_errors() as error:
        raise SourceError(f"{path}: not a Parquet file: {error}") from error


def parquet_errors() -> tuple[type[Exception], ...]:
    """The errors that pyarrow raises for damaged files."""
    from pyarrow import ArrowException

    return (SourceError, OSError, ArrowException, ValueError, OverflowError, MemoryError, KeyError)


def _parquet_rows(path: Table, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    file = open_parquet(path)
    existing = [name for name in columns if name in file.schema_arrow.names]
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=existing):
            cells = {name: map(text_of, batch.column(name).to_pylist()) for name in existing}
            missing = [None] * batch.num_rows
            yield from zip(*(cells.get(name, missing) for name in columns), strict=True)
    except parquet_errors() as error:
        raise SourceError(f"{path}: damaged Parquet file: {error}") from error
