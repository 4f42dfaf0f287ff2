"""`featcache label`: columns of a table become targets of a cache. It never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cache.label_options import LabelOptions
from featcache.cli.caches import SECTION
from featcache.cli.commands import command
from featcache.cli.finding import CACHE, CacheOptions
from featcache.cli.options import Common
from featcache.cli.printing import Bold, human_count, human_list, print_json, print_line, print_next, print_table
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage
from featcache.columns import LABEL
from featcache.config import command_words

if TYPE_CHECKING:
    from featcache.cache.labelling import Labelled

_MOST_NAMED = 5


def register(app: typer.Typer) -> None:
    """Add `label` to the typer app."""

    @command(
        app,
        "label",
        section=SECTION,
        examples=(
            "featcache label cifar10-vgg16 species.csv",
            "featcache label --backbone vgg16 table.parquet --column weight --on filename",
        ),
    )
    def label(
        cache: Annotated[str | None, CACHE] = None,
        table: Annotated[
            Path | None,
            typer.Argument(
                metavar="TABLE", help="A CSV, TSV or Parquet file with a row per image.", show_default=False
            ),
        ] = None,
        *,
        which: CacheOptions,
        what: LabelOptions,
        common: Common,
    ) -> None:
        """Add columns of a table to a cache, or remove some.

        A column holds labels, numbers, groups or texts. Nothing is computed. A target of the same name is replaced;
        heads learn the one that is called label. A cache in one file is written again whole. Images that the table
        does not name have no value.
        """
        from featcache.images.tables import SUFFIXES

        if cache is not None and table is None and Path(cache).suffix.lower() in SUFFIXES:
            table, cache = Path(cache), None
        if table is None and not what.remove:
            raise WrongUsage("expected a table, or targets to remove, got neither", hint="--remove NAME")
        if table is None and (ignored := [flag for flag in command_words(what, without=("remove",)) if flag[0] == "-"]):
            raise WrongUsage(f"expected a table for {', '.join(ignored)}, got none", hint="name the table first")
        from featcache.cache.catalog import name_of
        from featcache.extraction.labelling import label_from_table

        path = which.find(common.features_dir, cache).require_complete()
        with Terminal(quiet=common.quiet) as terminal:
            done = label_from_table(path, table, what, reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done, name_of(path), common)


_HEADER = ("target", "kind", "names", "images without a value", "")


def _show(done: Labelled, cache: str, common: Common) -> None:
    if done.added:
        matched = Bold(f"{done.matched:,} of {human_count(done.rows, 'image')}")
        print_line(matched, f" matched on the {done.on} (column {done.key})")
        print_line()
        rows = [
            (
                one.name,
                one.kind,
                f"{one.names:,}" if one.names else "-",
                f"{one.unlabelled:,}" if one.unlabelled else "-",
                "replaced" if one.replaced else "added",
            )
            for one in done.added
        ]
        print_table(rows, header=_HEADER)
        print_line()
    unmatched = f"about no image: {human_list(done.unmatched, _MOST_NAMED)}"
    for count, one, several in (
        (len(done.unmatched), f"row of the table is {unmatched}", f"rows of the table are {unmatched}"),
        (done.without_key, f"row of the table has no {done.key}", f"rows of the table have no {done.key}"),
        (done.repeated, "row of the table repeats another one", "rows of the table repeat another one"),
    ):
        if count:
            print_line(human_count(count, one, several))
    if done.left_out:
        print_line(f"columns left out: {', '.join(done.left_out)}")
    if done.removed:
        print_line(f"removed: {', '.join(done.removed)}")
    _show_next(done, cache, common)


def _show_next(done: Labelled, cache: str, common: Common) -> None:
    """A head on the new target that most images have, or what the cache holds where there is none to learn."""
    named = [one for one in done.added if one.kind in ("classes", "lists") and one.names > 1]
    targets = named + [one for one in done.added if one.kind == "numbers"]
    if targets:
        name = min(targets, key=lambda one: one.unlabelled).name
        print_next(common, "train-head", cache, *([] if name == LABEL else ["--target", name]))
    else:
        print_next(common, "info", cache)
