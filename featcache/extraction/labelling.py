"""`featcache.label`, also used by the command of that name: adds columns of a table to a cache as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featcache.cache.catalog import find, name_of
from featcache.cache.label_options import LabelOptions, choose_columns, choose_key
from featcache.cache.labelling import Cells, Labelled, label_cache
from featcache.cache.locks import Owner, lock_cache
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.files import disk_errors
from featcache.images.tables import SUFFIXES, column_kinds, column_names, is_table, table_rows
from featcache.progress import StageProgress


@accepts(LabelOptions)
def label(
    cache: str | Path | FeatureCache,
    table: str | Path | None = None,
    *,
    data_dir: str | Path = "data",
    progress: StageProgress | bool | None = None,
    **options: Any,
) -> Labelled:
    """Add columns of a table to a cache as targets, or remove targets. No row is computed.

    A cache in one file is written again as a whole; of a cache in several files, only the small file of targets is
    written. A cache that is open keeps the old targets; open it again to see the new ones.

    Args:
        cache: A cache, its path, its name, or the unique beginning of its name.
        table: A CSV, TSV or Parquet file with a row per image. None: only remove targets.
        data_dir: The folder of data sets, weights and caches.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, bytes done, bytes in all).
        {options}

    Returns:
        The targets that were added, replaced and removed, and the rows of the table that match no image.

    Raises:
        CacheNotFound, CacheIncomplete: There is no such cache, or it is not finished.
        SourceError: The table cannot be read, or has no rows.
        UnknownName: A column or target does not exist.
        InvalidOption: No row matches an image, a file name matches several, or two rows of one image differ.
        CacheError: The cache cannot be read or written; it is unchanged.
    """
    (given,) = divide_options(options, "label", LabelOptions, also=("cache", "table", "data_dir", "progress"))
    if isinstance(cache, FeatureCache):
        path = cache.path
    else:
        with disk_errors(Path(data_dir)):
            path = find(Path(data_dir) / "features", cache).require_complete()
    with ProgressReporter(progress) as reporter:
        return label_from_table(path, None if table is None else Path(table), LabelOptions(**given), reporter=reporter)


def label_from_table(path: Path, table: Path | None, options: LabelOptions, *, reporter: Reporter) -> Labelled:
    """Like `label`, for the complete cache at `path`. Waits while another process writes the cache.

    Args:
        path: A complete cache.
        table: A table with a row per image. None: only remove targets.
        options: Which columns become targets, and which targets are removed.
        reporter: Receives messages and progress.
    """
    if table is None and not options.remove:
        raise InvalidOption("expected a table, or targets to remove", hint="name a table, or --remove NAME")
    cells = None if table is None else read_cells(table, options)

    def waiting(owner: Owner | None) -> None:
        reporter.info(f"waiting: {owner or 'another process'} is writing this cache")

    with disk_errors(path.parent), lock_cache(path.parent, name_of(path), waiting=waiting):
        return label_cache(
            path,
            cells,
            options,
            report=reporter.info,
            progress=lambda done, total: reporter.advance("packing", done, total),
        )


def read_cells(table: Path, options: LabelOptions) -> Cells:
    """Read the key and the chosen columns of a table. Raises SourceError, UnknownName, InvalidOption."""
    if not table.is_file():
        raise SourceError(f"there is no table {table}")
    if not is_table(table):
        raise SourceError(f"{table} is not a table: expected a file that ends in {', '.join(SUFFIXES)}")
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
