"""`featcache report`: runs in, one HTML page out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import print_json, print_line, print_pairs
from featcache.cli.terminal import Terminal

if TYPE_CHECKING:
    from featcache.report import WrittenReport

_WHAT = "What is shown"
_WHERE = "Where it goes"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What stands on the page, and where it is written."""

    map: Annotated[
        Literal["pca", "tsne", "umap", "none"],
        typer.Option(
            help="How features are laid on a plane: pca at once, tsne and umap in minutes.", rich_help_panel=_WHAT
        ),
    ] = "pca"
    benchmark: Annotated[
        Path | None,
        typer.Option(help="The JSON of `featcache benchmark`, as a chart.", metavar="<file>", rich_help_panel=_WHAT),
    ] = None
    audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="Audit the cache of the best run too, as featcache audit does.", rich_help_panel=_WHAT
        ),
    ] = False
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page.", metavar="<file>", rich_help_panel=_WHERE)
    ] = Path("report.html")
    png: Annotated[
        Path | None,
        typer.Option(help="The pictures as SVG and PNG too, for papers.", metavar="<folder>", rich_help_panel=_WHERE),
    ] = None
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser.", rich_help_panel=_WHERE)] = False


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "report", section="Using a head")
    def report(
        runs: Annotated[
            list[str] | None,
            typer.Argument(help="Paths, names in --runs-dir, how these begin, latest or best. [default: all]"),
        ] = None,
        *,
        options: ReportOptions,
        common: Common,
    ) -> None:
        """Show runs on one HTML page: compared, and each in detail.

        The page opens from disk and asks the network for nothing. Nothing is computed but a map of the features, and
        neither weights nor an accelerator is needed.
        """
        from featcache.report import write_report

        with Terminal(quiet=common.quiet) as terminal:
            written = write_report(
                runs or (),
                options.output,
                map=options.map,
                png=options.png,
                benchmark=options.benchmark,
                audit=options.audit,
                data_dir=common.data_dir,
                runs_dir=common.runs_dir,
                progress=terminal.advance,
            )
            for note in written.notes:
                terminal.say(note)
        if common.json:
            print_json(written.to_json())
        else:
            _show(written)
        if options.open:
            typer.launch(written.path.resolve().as_uri())


def _show(written: WrittenReport) -> None:
    print_line(f"{written.path}  {written.nbytes / 1e6:.1f} MB")
    print_line()
    pictures = f"{written.pictures:,} of them with a picture" if written.pictures < written.images else "with pictures"
    print_pairs(
        [
            ("runs", f"{written.runs:,}"),
            ("images", f"{written.images:,}, {pictures}"),
            *([("files", f"{len(written.files)} in {written.files[0].parent}")] if written.files else []),
        ]
    )
