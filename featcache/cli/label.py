"""`featcache label`: columns of a table become targets of a cache. It never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cache.label_options import LabelOptions
from featcache.cli.caches import CACHE, SECTION
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import print_json, print_line, print_table
from featcache.cli.terminal import Terminal

if TYPE_CHECKING:
    from featcache.cache.labelling import Labelled

_NAMED = 5


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "label", section=SECTION)
    def label(
        cache: Annotated[str, CACHE],
        table: Annotated[
            Path | None, typer.Argument(help="A CSV, TSV or Parquet file with a row per image.", show_default=False)
        ] = None,
        *,
        what: LabelOptions,
        common: Common,
    ) -> None:
        """Add columns of a table to a cache, or remove some: labels, numbers, groups, texts.

        Nothing is computed. A target of the same name is replaced; heads learn the one that is called label. A cache
        in one file is written again whole. Images that the table does not name have no value.
        """
        if table is None and not what.remove:
            raise typer.BadParameter("name a table, or targets to remove: --remove NAME", param_hint="table")
        from featcache.cache.catalog import find
        from featcache.extraction.labelling import labelled

        path = find(common.features_dir, cache).require_complete()
        with Terminal(quiet=common.quiet) as terminal:
            done = labelled(path, table, what, reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done)


_HEADER = ("target", "kind", "names", "rows without a value", "")


def _show(done: Labelled) -> None:
    if done.added:
        rows = [
            (
                one.name,
                one.kind,
                f"{one.names:,}" if one.names else "-",
                f"{one.unlabelled:,}",
                "replaced" if one.replaced else "added",
            )
            for one in done.added
        ]
        print_table(rows, header=_HEADER)
        print_line(f"\n{done.matched:,} of {done.rows:,} rows matched on the {done.on} (column {done.key})")
    for count, what in (
        (len(done.unmatched), f"rows of the table are about no image: {_some(done.unmatched)}"),
        (done.without_key, f"rows of the table have no {done.key}"),
        (done.repeated, "rows of the table say what another one says"),
    ):
        if count:
            print_line(f"{count:,} {what}")
    if done.left_out:
        print_line(f"columns left out: {', '.join(done.left_out)}")
    if done.removed:
        print_line(f"removed: {', '.join(done.removed)}")


def _some(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
