"""`featcache extract`: images through frozen backbones, once, into caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from featcache.cli.commands import command
from featcache.cli.options import BackbonesOptions, Common, ImageOptions, RunOptions, number_or_auto, requested
from featcache.cli.printing import human_rows, human_seconds, print_json, print_line, print_pairs
from featcache.cli.terminal import Terminal
from featcache.extraction.reporting import human_bytes

if TYPE_CHECKING:
    from featcache.extraction.result import Extraction


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "extract", section="From images to a head")
    def extract(what: BackbonesOptions, images: ImageOptions, how: RunOptions, common: Common) -> None:
        """Run frozen backbones over images once, and cache their features.

        Rows that a cache or an unfinished extraction already holds are never computed again: the same command,
        run again after an interruption, goes on where it stopped, and is done at once when all is there.
        """
        from featcache.extraction.request import Request
        from featcache.extraction.run import Execution, extract, extract_each

        execution = Execution(
            device=how.device,
            batch_size=number_or_auto(how.batch_size, "--batch-size"),
            workers=number_or_auto(how.workers, "--workers"),
            part_rows=how.part_rows,
            on_error=how.on_error,
            wait=not how.no_wait,
            rehash=how.rehash,
        )
        requests = [Request(**requested(one, images, common)) for one in what.each()]
        with Terminal(quiet=common.quiet) as terminal:
            if len(requests) == 1:
                done = [extract(requests[0], execution, reporter=terminal)]
            else:
                done = list(extract_each(requests, execution, reporter=terminal))
        if common.json:
            answers = [extraction.to_json() for extraction in done]
            print_json(answers[0] if len(answers) == 1 else {"extractions": answers})
        else:
            _show_all(done)


def _show_all(done: Sequence[Extraction]) -> None:
    for number, extraction in enumerate(done):
        if number:
            print_line()
        _show(extraction)


def _where_time_went(shares: dict[str, float]) -> str:
    """The largest share first: "compute 93 %, decode 6 %, write 1 %"."""
    ranked = sorted(shares.items(), key=lambda share: -share[1])
    return ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in ranked)


def _show(extraction: Extraction) -> None:
    speed = f" at {extraction.images_per_s:,.1f} images/s" if extraction.images_per_s else ""
    print_pairs(
        [
            ("cache", str(extraction.cache)),
            ("size", human_bytes(extraction.cache.stat().st_size)),
            ("rows", human_rows(extraction.rows)),
            ("features", ", ".join(f"{dim:,} of {layer}" for layer, dim in extraction.feature_dim.items())),
            ("computed", f"{extraction.computed:,}{speed}"),
            *([("time went to", _where_time_went(extraction.shares))] if extraction.shares else []),
            ("reused", f"{extraction.reused:,}"),
            ("skipped", f"{len(extraction.skipped):,}"),
            ("took", human_seconds(extraction.seconds)),
        ]
    )
    for skipped in extraction.skipped:
        print_line(f"skipped {skipped.id}: {skipped.reason}")
