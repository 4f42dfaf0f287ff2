"""`featcache extract`: images through a frozen backbone, once, into a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from featcache.cli.options import (
    BackboneOptions,
    Common,
    ImageOptions,
    RunOptions,
    backbone_defaults,
    command,
    image_defaults,
    whole_number,
)
from featcache.cli.terminal import Terminal, human_bytes, human_seconds, print_json, print_table

if TYPE_CHECKING:
    from featcache.extraction.result import Extraction


def register(app: typer.Typer) -> None:
    @command(app, "extract")
    def extract(what: BackboneOptions, images: ImageOptions, how: RunOptions, common: Common) -> None:
        """Run a frozen backbone over images once and cache the features.

        Rows that a cache or an unfinished extraction already holds are never computed again: the same command,
        run again after an interruption, goes on where it stopped, and is done at once when all is there.
        """
        from featcache.extraction.request import Request
        from featcache.extraction.run import Execution, extract

        execution = Execution(
            device=how.device,
            batch_size=whole_number(how.batch_size, "--batch-size"),
            workers=whole_number(how.workers, "--workers"),
            part_rows=how.part_rows,
            on_error=how.on_error,
            wait=not how.no_wait,
        )
        request = Request(**backbone_defaults(what), **image_defaults(images), data_dir=common.data_dir)
        with Terminal(quiet=common.quiet) as terminal:
            extraction = extract(request, execution, reporter=terminal)
        if common.json:
            print_json(extraction.to_json())
        else:
            _show(extraction)


def _show(extraction: Extraction) -> None:
    counts = ", ".join(f"{rows} {split}" for split, rows in extraction.rows.items())
    dims = ", ".join(f"{layer} {dim}" for layer, dim in extraction.feature_dim.items())
    speed = f" at {extraction.images_per_s:.1f} images/s" if extraction.images_per_s else ""
    print_table(
        [
            ("cache", str(extraction.cache)),
            ("size", human_bytes(extraction.cache.stat().st_size)),
            ("rows", counts),
            ("features", dims),
            ("computed", f"{extraction.computed}{speed}"),
            ("reused", str(extraction.reused)),
            ("skipped", str(len(extraction.skipped))),
            ("took", human_seconds(extraction.seconds)),
        ]
    )
    for skipped in extraction.skipped:
        print(f"skipped {skipped.id}: {skipped.reason}")
