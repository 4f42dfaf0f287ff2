"""`featcache report`: writes one HTML page about runs and sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import Bold, human_count, human_path, print_json, print_line, print_next, print_pairs
from featcache.cli.terminal import Terminal
from featcache.report.options import ReportOptions
from featcache.text import human_bytes

if TYPE_CHECKING:
    from featcache.report import WrittenReport


def register(app: typer.Typer) -> None:
    """Add `report` to the typer app."""

    @command(
        app,
        "report",
        section="Using a head",
        examples=(
            "featcache report --output report.html --open",
            "featcache report latest best --map tsne",
        ),
    )
    def report(
        runs: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="RUN",
                help="Runs and sweeps: paths, names in --runs-dir, how these begin, latest or best (as in featcache "
                "predict). [default: all]",
            ),
        ] = None,
        *,
        options: ReportOptions,
        common: Common,
    ) -> None:
        """Show runs and sweeps on one HTML page.

        It begins with what is best and whether that is sure; then it compares, and shows each run in detail.
        The page opens from disk and asks the network for nothing. Nothing is computed but a map of the features, and
        neither weights nor an accelerator is needed.
        """
        from featcache.report import write_report
        from featcache.runs.catalog import BEST

        with Terminal(quiet=common.quiet) as terminal:
            written = write_report(
                runs or (),
                options.output,
                **options.contents,
                data_dir=common.data_dir,
                runs_dir=common.runs_dir,
                progress=terminal.advance,
            )
            for note in written.notes:
                terminal.info(note)
        if common.json:
            print_json(written.to_json())
        else:
            show_report(written)
            print_next(common, "export", runs[0] if runs else BEST, "--output", "head.pt2")
        if options.open:
            typer.launch(written.path.resolve().as_uri())


def show_report(written: WrittenReport) -> None:
    """Print where the page is, and what it shows."""
    page = f" in {human_path(written.path)} ({human_bytes(written.nbytes)})"
    print_line(Bold(human_count(written.runs, "run")), page)
    pictures = f"{written.pictures:,} of them with a picture" if written.pictures < written.images else "with pictures"
    files = [("files", f"{len(written.files):,} in {human_path(written.files[0].parent)}")] if written.files else []
    print_pairs([("images", f"{written.images:,}, {pictures}"), *files])
