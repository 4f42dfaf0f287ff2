"""`featcache.label` and the command of that name: a table's columns become targets of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.cache.catalog import find, name_of
from featcache.cache.label_options import LabelOptions, choose_columns, choose_key
from featcache.cache.labelling import Cells, Labelled, label_cache
from featcache.cache.locks import Owner, locked
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.files import disk_errors
from featcache.images.tables import SUFFIXES, column_kinds, column_names, is_table, table_rows


@accepts(LabelOptions)
def label(
    cache: str | Path | FeatureCache, table: str | Path | None = None, *, data_dir: str | Path = "data", **options: Any
) -> Labelled:
    """Add columns of a table to a cache as targets, or remove targets. No row is computed.

    A cache in one file is written again whole; beside one in several files only the small file of targets is. What
    has the cache open keeps reading what was there; open it again to see the new targets.

    Args:
        cache: A cache, its path, its name, or how that begins.
        table: A CSV, TSV or Parquet file with a row per image. None: only `remove`.
        data_dir: The folder of data sets, weights and caches.
        {options}

    Returns:
        What was added, replaced and removed, and which rows of the table are about no image.

    Raises:
        CacheNotFound, CacheIncomplete: There is no such cache, or it is not finished.
        SourceError: The table cannot be read, or has no rows.
        UnknownName: A column or target that there is not.
        InvalidOption: No row is about an image, a file name means several, or two rows of one image differ.
        CacheError: The cache cannot be read or written; it is what it was.
    """
    (said,) = divided(options, "label", LabelOptions, also=("cache", "table", "data_dir"))
    if isinstance(cache, FeatureCache):
        path = cache.path
    else:
        with disk_errors(Path(data_dir)):
            path = find(Path(data_dir) / "features", cache).require_complete()
    return labelled(path, None if table is None else Path(table), LabelOptions(**said), reporter=LogReporter())


def labelled(path: Path, table: Path | None, options: LabelOptions, *, reporter: Reporter) -> Labelled:
    """The same of the complete cache at `path`, telling `reporter` about it. Waits for another process that writes."""
    if table is None and not options.remove:
        raise InvalidOption("expected a table, or targets to remove", hint="name a table, or --remove NAME")
    cells = None if table is None else read_cells(table, options)

    def waiting(owner: Owner | None) -> None:
        reporter.say(f"waiting: {owner or 'another process'} is writing this cache")

    with disk_errors(path.parent), locked(path.parent, name_of(path), waiting=waiting):
        return label_cache(
            path,
            cells,
            options,
            say=reporter.say,
            progress=lambda done, total: reporter.advance("packing", done, total),
        )


def read_cells(table: Path, options: LabelOptions) -> Cells:
    """The key and the columns of a table. Raises SourceError, UnknownName, InvalidOption."""
    if not table.is_file():
        raise SourceError(f"there is no table {table}")
    if not is_table(table):
        raise SourceError(f"{table} is no table: expected a file that ends in {', '.join(SUFFIXES)}")
    names = column_names(table)
    on, key = choose_key(table.name, names, options)
    chosen = choose_columns(table.name, names, key, options)
    read = tuple(dict.fromkeys((key, *(column for choice in chosen for column in choice.columns))))
    place = {name: number for number, name in enumerate(read)}
    rows = list(table_rows(table, read))
    if not rows:
        raise SourceError(f"{table} has no rows", hint="expected a line of column names, then a row per image")
    return Cells(
        name=table.name,
        on=on,
        key=key,
        keys=[(row[place[key]] or "").strip() or None for row in rows],
        columns={
            choice.name: [choice.cell([row[place[one]] for one in choice.columns]) for row in rows] for choice in chosen
        },
        kinds={choice.name: "lists" for choice in chosen if choice.names} | column_kinds(table) | options.kind_of,
        left_out=tuple(name for name in names if name not in read),
    )
