"""`featcache extract`: images through frozen backbones, once, into caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli.commands import command
from featcache.cli.groups import Without
from featcache.cli.options import Common, requested
from featcache.cli.printing import human_rows, human_seconds, print_json, print_line, print_pairs
from featcache.cli.terminal import Terminal
from featcache.columns import ColumnOptions
from featcache.extraction.execution import Cluster, Execution
from featcache.extraction.reporting import human_bytes
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    from featcache.extraction.result import Extraction


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "extract", section="From images to a head")
    def extract(
        what: list[BackboneOptions],
        storage: StorageOptions,
        images: ImageOptions,
        columns: ColumnOptions,
        how: Execution,
        cluster: Cluster,
        common: Common,
    ) -> None:
        """Run frozen backbones over images once, and cache their features.

        Rows that a cache or an unfinished extraction already holds are never computed again: the same command,
        run again after an interruption, goes on where it stopped, and is done at once when all is there.
        """
        from featcache.extraction.run import extract, extract_each

        requests = [requested(one, storage, images, common, columns) for one in what]
        with Terminal(quiet=common.quiet) as terminal:
            if cluster.engine == "ray":
                done = [_on_ray(one, how, cluster, terminal) for one in requests]
            elif len(requests) == 1:
                done = [extract(requests[0], how, reporter=terminal)]
            else:
                done = list(extract_each(requests, how, reporter=terminal))
        if common.json:
            answers = [extraction.to_json() for extraction in done]
            print_json(answers[0] if len(answers) == 1 else {"extractions": answers})
        else:
            _show_all(done)

    @command(app, "assemble", section="From images to a head")
    def assemble(
        what: BackboneOptions,
        storage: StorageOptions,
        images: ImageOptions,
        columns: ColumnOptions,
        how: Annotated[Execution, Without("shard")],
        common: Common,
    ) -> None:
        """Publish what shards have extracted, or pack a cache.

        Takes the options of the extraction. Nothing is computed: rows that are missing are an error.
        """
        from featcache.extraction.run import assemble

        with Terminal(quiet=common.quiet) as terminal:
            done = assemble(requested(what, storage, images, common, columns), how, reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done)


def _on_ray(request: Request, execution: Execution, cluster: Cluster, terminal: Terminal) -> Extraction:
    from featcache.extraction.ray_engine import extract_on_ray

    if execution.shard is not None:
        raise typer.BadParameter("a cluster cuts the work itself: leave one of --shard and --engine out")
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
        return [("state", "unfinished: a shard of it is computed, others are not")]
    files = sorted(extraction.cache.glob("*.h5")) if extraction.cache.is_dir() else [extraction.cache]
    several = f" in {len(files):,} files" if len(files) > 1 else ""
    return [("size", human_bytes(sum(file.stat().st_size for file in files)) + several)]


def _show(extraction: Extraction) -> None:
    speed = f" at {extraction.images_per_s:,.1f} images/s" if extraction.images_per_s else ""
    print_pairs(
        [
            ("cache", str(extraction.cache)),
            *_size(extraction),
            *([] if extraction.images is None else extraction.images.rows()),
            *([("rows", human_rows(extraction.rows))] if extraction.images is None else []),
            ("features", ", ".join(f"{dim:,} of {layer}" for layer, dim in extraction.feature_dim.items())),
            ("computed", f"{extraction.computed:,}{speed}"),
            *([("time went to", _where_time_went(extraction.shares))] if extraction.shares else []),
            ("reused", f"{extraction.reused:,}"),
            ("skipped", f"{len(extraction.skipped):,}"),
            ("took", human_seconds(extraction.seconds)),
        ]
    )
    if not extraction.complete:
        print_line("\nthe last shard to end publishes the cache")
    for skipped in extraction.skipped:
        print_line(f"skipped {skipped.id}: {skipped.reason}")
