"""`featcache extract`: images through frozen backbones, once, into caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from featcache.cli.commands import command
from featcache.cli.options import (
    BackboneOptions,
    BackbonesOptions,
    Common,
    ImageOptions,
    RunOptions,
    TogetherOptions,
    number_or_auto,
    requested,
)
from featcache.cli.printing import human_rows, human_seconds, print_json, print_line, print_pairs
from featcache.cli.terminal import Terminal
from featcache.extraction.reporting import human_bytes

if TYPE_CHECKING:
    from featcache.extraction.request import Request
    from featcache.extraction.result import Extraction
    from featcache.extraction.run import Execution


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "extract", section="From images to a head")
    def extract(
        what: BackbonesOptions, images: ImageOptions, how: RunOptions, together: TogetherOptions, common: Common
    ) -> None:
        """Run frozen backbones over images once, and cache their features.

        Rows that a cache or an unfinished extraction already holds are never computed again: the same command,
        run again after an interruption, goes on where it stopped, and is done at once when all is there.
        """
        from featcache.extraction.request import Request
        from featcache.extraction.run import extract, extract_each

        execution = _execution(how, together)
        requests = [Request(**requested(one, images, common)) for one in what.each()]
        with Terminal(quiet=common.quiet) as terminal:
            if together.engine == "ray":
                done = [_on_ray(one, execution, together, terminal) for one in requests]
            elif len(requests) == 1:
                done = [extract(requests[0], execution, reporter=terminal)]
            else:
                done = list(extract_each(requests, execution, reporter=terminal))
        if common.json:
            answers = [extraction.to_json() for extraction in done]
            print_json(answers[0] if len(answers) == 1 else {"extractions": answers})
        else:
            _show_all(done)

    @command(app, "assemble", section="From images to a head")
    def assemble(what: BackboneOptions, images: ImageOptions, how: RunOptions, common: Common) -> None:
        """Write the cache of an extraction that was done in shards.

        Takes the options that the shards were given. Nothing is computed: rows that are missing are an error.
        """
        from featcache.extraction.request import Request
        from featcache.extraction.run import assemble

        with Terminal(quiet=common.quiet) as terminal:
            done = assemble(Request(**requested(what, images, common)), _execution(how), reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done)


def _execution(how: RunOptions, together: TogetherOptions | None = None) -> Execution:
    from featcache.extraction.run import Execution
    from featcache.extraction.shares import Shard

    shard = together.shard if together is not None else None
    if shard is not None and together is not None and together.engine != "local":
        raise typer.BadParameter("a cluster cuts the work itself: leave one of --shard and --engine out")
    return Execution(
        device=how.device,
        batch_size=number_or_auto(how.batch_size, "--batch-size"),
        workers=number_or_auto(how.workers, "--workers"),
        part_rows=how.part_rows,
        resize_on=how.resize_on,
        on_error=how.on_error,
        wait=not how.no_wait,
        rehash=how.rehash,
        min_cosine=how.min_cosine,
        shard=None if shard is None else Shard.parse(shard),
        shard_rows=how.shard_rows,
    )


def _on_ray(request: Request, execution: Execution, together: TogetherOptions, terminal: Terminal) -> Extraction:
    from featcache.extraction.ray_engine import Cluster, extract_on_ray

    cluster = Cluster(
        address=together.address,
        gpus_per_task=together.gpus_per_task,
        cpus_per_task=together.cpus_per_task,
        max_parallel=together.max_parallel,
        deadline_s=together.task_deadline,
    )
    return extract_on_ray(request, execution, cluster, reporter=terminal)


def _show_all(done: Sequence[Extraction]) -> None:
    for number, extraction in enumerate(done):
        if number:
            print_line()
        _show(extraction)


def _where_time_went(shares: dict[str, float]) -> str:
    """The largest share first: "compute 93 %, decode 6 %, write 1 %"."""
    ranked = sorted(shares.items(), key=lambda share: -share[1])
    return ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in ranked)


def _size(extraction: Extraction) -> list[tuple[str, str]]:
    if not extraction.complete:
        return [("state", "a shard of it is computed; the file is not written yet")]
    files = sorted(extraction.cache.glob("*.h5")) if extraction.cache.is_dir() else [extraction.cache]
    several = f" in {len(files):,} files" if len(files) > 1 else ""
    return [("size", human_bytes(sum(file.stat().st_size for file in files)) + several)]


def _show(extraction: Extraction) -> None:
    speed = f" at {extraction.images_per_s:,.1f} images/s" if extraction.images_per_s else ""
    print_pairs(
        [
            ("cache", str(extraction.cache)),
            *_size(extraction),
            ("rows", human_rows(extraction.rows)),
            ("features", ", ".join(f"{dim:,} of {layer}" for layer, dim in extraction.feature_dim.items())),
            ("computed", f"{extraction.computed:,}{speed}"),
            *([("time went to", _where_time_went(extraction.shares))] if extraction.shares else []),
            ("reused", f"{extraction.reused:,}"),
            ("skipped", f"{len(extraction.skipped):,}"),
            ("took", human_seconds(extraction.seconds)),
        ]
    )
    if not extraction.complete:
        print_line("\nwhen all shards are done: featcache assemble, with the same options")
    for skipped in extraction.skipped:
        print_line(f"skipped {skipped.id}: {skipped.reason}")
