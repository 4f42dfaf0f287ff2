"""`featcache audit`: what stands in a cache that should not."""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import human_rows, human_seconds, print_json, print_line, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.errors import FeatcacheError

if TYPE_CHECKING:
    from featcache.analysis.records import Audit, Finding, Section
    from featcache.cache.reader import FeatureCache
    from featcache.images.source import ImageSource

_OPTIONS = "What is looked for, and how"
_MOST_NAMED = 3
_INDENT = "  "


def register(app: typer.Typer) -> None:
    """Adds this group's command."""

    @command(app, "audit", section="The caches")
    def audit(
        cache: Annotated[str, typer.Argument(help="Its path, its name from `featcache ls`, or how that begins.")],
        layer: Annotated[
            str | None,
            typer.Option(
                help="Whose features are used. [default: the first]", metavar="<name>", rich_help_panel=_OPTIONS
            ),
        ] = None,
        top: Annotated[
            int,
            typer.Option(
                help="Findings of each kind in the table; --json and --output have all.",
                metavar="<findings>",
                min=1,
                rich_help_panel=_OPTIONS,
            ),
        ] = 10,
        pixels: Annotated[
            bool,
            typer.Option(
                "--pixels/--no-pixels",
                help="Compare the images too where their features are near, or their features only.",
                rich_help_panel=_OPTIONS,
            ),
        ] = True,
        output: Annotated[
            Path | None,
            typer.Option(
                "--output",
                "-o",
                help="Write all findings to this .json or .csv file too.",
                metavar="<file>",
                rich_help_panel=_OPTIONS,
            ),
        ] = None,
        device: Annotated[
            str,
            typer.Option(help="Where it computes: auto, cpu, cuda, mps.", metavar="<device>", rich_help_panel=_OPTIONS),
        ] = "auto",
        seed: Annotated[
            int, typer.Option(help="Of folds and samples.", metavar="<seed>", min=0, rich_help_panel=_OPTIONS)
        ] = 0,
        *,
        common: Common,
    ) -> None:
        """Look for leaks, wrong labels, duplicates and outliers.

        Named are the same picture in several splits or twice in one, labels that the features contradict, images like
        no class, and splits that do not fit each other or their names. The cache stays as it is.
        """
        from featcache.analysis.audit import audit_cache
        from featcache.analysis.files import check_name, write_audit
        from featcache.cache.catalog import find
        from featcache.cache.reader import FeatureCache
        from featcache.rows.devices import choose_device

        if output is not None:
            check_name(output)
        place = str(choose_device(device))
        with (
            Terminal(quiet=common.quiet) as terminal,
            FeatureCache.open(find(common.features_dir, cache).require_complete()) as opened,
            ExitStack() as held,
        ):
            source = held.enter_context(_images(opened, common, terminal)) if pixels else None
            found = audit_cache(opened, layer=layer, source=source, device=place, seed=seed, progress=terminal.advance)
        if output is not None:
            write_audit(output, found)
        if common.json:
            print_json(found.to_json())
        else:
            _show(found, top, output)


def _images(cache: FeatureCache, common: Common, terminal: Terminal) -> AbstractContextManager[ImageSource | None]:
    from featcache.images import open_images

    try:
        return open_images(cache.selection.source, datasets_dir=common.data_dir / "datasets", download=False)
    except FeatcacheError as error:
        terminal.warn(f"{error.message}; near duplicates are judged by their features alone, which finds fewer")
        return nullcontext()


def _show(audit: Audit, top: int, output: Path | None) -> None:
    rows = {split: sum(sizes.values()) for split, sizes in audit.counts.items()}
    print_pairs(
        [
            ("cache", audit.cache),
            ("layer", audit.layer),
            ("images", human_rows(rows)),
            ("took", human_seconds(audit.seconds)),
        ]
    )
    for section in audit.sections:
        _show_section(section, top)
    if output is not None:
        print_line()
        print_line(f"all findings are in {output}")


def _show_section(section: Section, top: int) -> None:
    print_line()
    print_line(f"{section.title}: {len(section.findings):,}" if section.findings else f"{section.title}: none")
    width = get_terminal_size((100, 24)).columns
    print_line(textwrap.fill(section.note, width, initial_indent=_INDENT, subsequent_indent=_INDENT))
    shown = section.findings[:top]
    if shown:
        print_table(
            [(f"{one.score:.2f}", one.reason, _named(one)) for one in shown], header=("score", "what", "images")
        )
    if len(shown) < len(section.findings):
        print_line(f"and {len(section.findings) - len(shown):,} more; --top shows more of them")


def _named(finding: Finding) -> str:
    more = len(finding.samples) - _MOST_NAMED
    names = ", ".join(sample.id for sample in finding.samples[:_MOST_NAMED])
    return f"{names} and {more:,} more" if more > 0 else names
