"""`featcache audit`: finds leaks, duplicates, label errors and outliers in a cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featcache.analysis.options import AuditOptions
from featcache.cli.commands import FOUND, command
from featcache.cli.finding import CACHE, CacheOptions
from featcache.cli.groups import Only
from featcache.cli.options import Common
from featcache.cli.printing import (
    Bold,
    human_count,
    human_list,
    human_path,
    human_rows,
    print_json,
    print_line,
    print_next,
    print_pairs,
    print_table,
    print_wrapped,
)
from featcache.cli.terminal import Terminal
from featcache.config import Option
from featcache.errors import FeatcacheError
from featcache.extraction.execution import ComputeOptions
from featcache.text import human_seconds

if TYPE_CHECKING:
    from featcache.analysis.records import Audit, Finding, Section
    from featcache.cache.reader import FeatureCache
    from featcache.images.source import ImageSource

_MOST_NAMED = 3
_INDENT = "  "


def register(app: typer.Typer) -> None:
    """Add `audit` to the typer app."""

    @command(
        app,
        "audit",
        section="The caches",
        examples=(
            "featcache audit cifar10-vgg16",
            "featcache audit cifar10-vgg16 --fail-on leaks --output findings.csv",
        ),
    )
    def audit(
        cache: Annotated[str | None, CACHE] = None,
        top: Annotated[
            int,
            Option(
                help="Findings of each kind in the table; --json and --output have all.",
                metavar="<findings>",
                least=1,
                panel=AuditOptions.PANEL,
            ),
        ] = 10,
        pixels: Annotated[
            bool,
            Option(
                help="Compare the pixels of images whose features are near, or only bytes and features.",
                flags=("--pixels/--no-pixels",),
                panel=AuditOptions.PANEL,
            ),
        ] = True,
        output: Annotated[
            Path | None,
            Option(
                help="Write all findings to this .json or .csv file too.",
                flags=(
                    "--output",
                    "-o",
                ),
                metavar="<file>",
                panel=AuditOptions.PANEL,
            ),
        ] = None,
        fail_on: Annotated[
            Literal["none", "leaks", "findings"],
            Option(
                help="End with exit code 3 at such findings. leaks: the same image or one group in two splits.",
                panel=AuditOptions.PANEL,
            ),
        ] = "none",
        *,
        which: CacheOptions,
        what: AuditOptions,
        how: Annotated[ComputeOptions, Only("device")],
        common: Common,
    ) -> None:
        """Look for leaks, wrong labels, duplicates and outliers.

        Leaks and duplicates are certain: the same bytes or pixels. Images that look alike, labels that the features
        contradict, and images like no class are likely. What the checks cannot tell is withheld, with the reason. The
        cache stays as it is.
        """
        from featcache.analysis.audit import audit_cache
        from featcache.analysis.records import check_name, write_audit
        from featcache.cache.reader import FeatureCache
        from featcache.rows.devices import choose_device

        if output is not None:
            check_name(output)
        entry = which.find(common.features_dir, cache, layers=[] if what.layer is None else [what.layer])
        place = str(choose_device(how.device))
        with (
            Terminal(quiet=common.quiet) as terminal,
            FeatureCache.open(entry.require_complete()) as opened,
            ExitStack() as held,
        ):
            source = held.enter_context(_images(opened, common, terminal)) if pixels else None
            found = audit_cache(opened, source=source, device=place, progress=terminal.advance, **asdict(what))
        if output is not None:
            write_audit(output, found)
        if common.json:
            print_json(found.to_json())
        else:
            _show(found, top, output, common)
        if fail_on != "none" and _fails(found, fail_on):
            raise typer.Exit(FOUND)


def _fails(audit: Audit, fail_on: str) -> bool:
    """Whether there are findings on which the command is to fail."""
    return any(one.findings for one in audit.sections if fail_on == "findings" or one.kind in ("leak", "group_leak"))


def _images(cache: FeatureCache, common: Common, terminal: Terminal) -> AbstractContextManager[ImageSource | None]:
    from featcache.images import open_images

    try:
        return open_images(cache.selection.source, datasets_dir=common.data_dir / "datasets", download=False)
    except FeatcacheError as error:
        terminal.warn(f"{error.message}; pixels are not compared, so only the same bytes are certain")
        return nullcontext()


def _show(audit: Audit, top: int, output: Path | None, common: Common) -> None:
    rows = {split: sum(sizes.values()) for split, sizes in audit.counts.items()}
    count = sum(len(section.findings) for section in audit.sections)
    withheld = f"; {human_count(len(audit.withheld), 'check')} withheld" if audit.withheld else ""
    print_line(Bold(human_count(count, "finding") if count else "no findings"), f" in {audit.cache}{withheld}")
    print_pairs([("layer", audit.layer), ("images", human_rows(rows)), ("took", human_seconds(audit.seconds))])
    shown = [section for section in audit.sections if section.findings or section.withheld is not None]
    for section in shown:
        _show_section(section, top)
    print_line()
    if clear := [section.title for section in audit.sections if section not in shown]:
        print_wrapped(f"nothing found: {'; '.join(clear)}")
    if output is not None:
        print_line(f"all findings are in {human_path(output)}")
    if count and output is None:
        print_next(common, "audit", audit.cache, "--output", "audit.csv")
    else:
        print_next(common, "train-head" if _has_labels(audit) else "info", audit.cache)


def _has_labels(audit: Audit) -> bool:
    """Whether a head can learn its classes."""
    return sum(bool(name) and count > 0 for name, count in audit.counts.get("train", {}).items()) > 1


def _show_section(section: Section, top: int) -> None:
    print_line()
    found = f"{len(section.findings):,}" if section.findings else "withheld"
    print_line(f"{section.title}: {found}")
    withheld = [] if section.withheld is None else [f"withheld: {section.withheld}"]
    for text in (section.note, *withheld):
        print_wrapped(text, indent=_INDENT)
    shown = section.findings[:top]
    if shown:
        rows = [(f"{finding.score:.2f}", finding.reason, _names_of(finding)) for finding in shown]
        print_table(rows, header=("score", "what", "images"), shorten=(2, 1))
    if len(shown) < len(section.findings):
        print_line(f"and {len(section.findings) - len(shown):,} more; --top shows more of them")


def _names_of(finding: Finding) -> str:
    return human_list([sample.id for sample in finding.samples], _MOST_NAMED)
