"""Tables of texts, row by row: CSV, TSV and Parquet, as columns of images and of their targets are read."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import MissingExtra, SourceError

SUFFIXES = (".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 8192

#: The cells of a row by column; None where there is nothing.
Row = Mapping[str, str | None]


def is_table(path: Path) -> bool:
    """Whether a file is meant as a table, by its name."""
    return path.suffix.lower() in SUFFIXES


def column_names(path: Path) -> tuple[str, ...]:
    """The names of a table's columns, in order.

    Raises SourceError where the file is no table, or has two columns of one name, MissingExtra for Parquet without
    pyarrow.
    """
    names = list(_parquet(path).schema_arrow.names) if _is_parquet(path) else next(_cells(path), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: {', '.join(map(repr, twice))} stands twice among its columns", hint="rename one")
    return tuple(names)


def table_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a table, with the cells of these columns as text; a list in a Parquet cell is joined with `;`.

    Raises what `column_names` raises, and SourceError for a row with more cells than there are columns.
    """
    names = column_names(path)
    wanted = [name for name in names if name in columns]
    yield from _parquet_rows(path, wanted) if _is_parquet(path) else _csv_rows(path, names, wanted)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _cells(path: Path) -> Iterator[list[str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from (row for row in csv.reader(file, delimiter=delimiter) if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as a table: {error}") from error


def _csv_rows(path: Path, names: tuple[str, ...], wanted: Collection[str]) -> Iterator[Row]:
    places = {name: names.index(name) for name in wanted}
    rows = _cells(path)
    next(rows, None)
    for number, cells in enumerate(rows, start=2):
        if len(cells) > len(names):
            raise SourceError(
                f"{path} row {number}: expected {len(names)} cells, got {len(cells)}",
                hint="quote a cell that holds the delimiter",
            )
        yield {name: cells[place] if place < len(cells) else None for name, place in places.items()}


def _parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[Row]:
    from pyarrow import ArrowException

    file = _parquet(path)
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(wanted)):
            for row in batch.to_pylist():
                yield {name: _text(value) for name, value in row.items()}
    except (OSError, ArrowException) as error:
        raise SourceError(f"{path}: damaged Parquet file: {error}") from error


def _text(value: object) -> str | None:
    if value is None:
        return None
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtra("a Parquet table", package="pyarrow", extra="export") from error
    try:
        return ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise SourceError(f"{path}: no Parquet file: {error}") from error
