"""`featcache extract`: runs frozen backbones over images once, and caches their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli.commands import command
from featcache.cli.finding import CACHE, CacheOptions
from featcache.cli.groups import Only
from featcache.cli.options import Common
from featcache.cli.printing import (
    Bold,
    human_count,
    human_path,
    human_rows,
    print_json,
    print_line,
    print_next,
    print_pairs,
)
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage, usage_errors
from featcache.columns import LABEL, ColumnOptions
from featcache.config import merge_fields
from featcache.extraction.execution import Cluster, Execution
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions
from featcache.text import human_bytes, human_seconds

if TYPE_CHECKING:
    from featcache.extraction.result import Extraction


def register(app: typer.Typer) -> None:
    """Add `extract` and `assemble` to the typer app."""

    @command(
        app,
        "extract",
        section="From images to a head",
        examples=(
            "featcache extract --dataset photos/ --backbone vgg16",
            "featcache extract -d digits -b pixels --limit 200",
        ),
    )
    def extract(
        backbones: list[BackboneOptions],
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

        with usage_errors():
            requests = [
                Request(**merge_fields(images, one, storage, columns), data_dir=common.data_dir) for one in backbones
            ]
        with Terminal(quiet=common.quiet) as terminal:
            if cluster.engine == "ray":
                done = [_on_ray(one, how, cluster, terminal) for one in requests]
            elif len(requests) == 1:
                done = [extract(requests[0], how, reporter=terminal)]
            else:
                done = list(extract_each(requests, how, reporter=terminal))
        if common.json:
            answers = [extraction.to_json() for extraction in done]
            print_json(answers[0] if len(answers) == 1 else {"caches": answers})
        else:
            show_extractions(done)
            _show_next(done, common)

    @command(
        app,
        "assemble",
        section="From images to a head",
        examples=("featcache assemble cifar10-vgg16", "featcache assemble --backbone vgg16 --pack"),
    )
    def assemble(
        cache: Annotated[str | None, CACHE] = None,
        *,
        which: CacheOptions,
        how: Annotated[Execution, Only("pack", "on_error", "wait")],
        common: Common,
    ) -> None:
        """Publish a cache whose shards are computed, or pack a cache.

        The shard that ends last publishes the cache itself: this is needed only where it could not. To pack is to
        write a cache in several files as one. Nothing is computed: rows that are missing are an error. The images are
        listed again, as they were extracted.
        """
        from featcache.extraction.run import assemble_cache

        entry = which.find(common.features_dir, cache, unfinished_first=True)
        with Terminal(quiet=common.quiet) as terminal:
            done = assemble_cache(entry, how, reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            show_extractions([done])
            _show_next([done], common)


def _on_ray(request: Request, execution: Execution, cluster: Cluster, terminal: Terminal) -> Extraction:
    from featcache.extraction.ray_engine import extract_on_ray

    if execution.shard is not None:
        raise WrongUsage("expected --shard or --engine ray, got both", hint="a cluster divides the work itself")
    return extract_on_ray(request, execution, cluster, reporter=terminal)


def show_extractions(done: Sequence[Extraction]) -> None:
    """Print what was computed for each cache, and what is in it."""
    for number, extraction in enumerate(done):
        if number:
            print_line()
        _show(extraction)


def _show_next(done: Sequence[Extraction], common: Common) -> None:
    from featcache.cache.catalog import name_of

    if not all(extraction.complete for extraction in done):
        return
    names = [name_of(extraction.cache) for extraction in done]
    layers = [[*extraction.feature_dim] for extraction in done]
    if not all(map(_has_labels, done)):
        print_next(common, "info", names[0])
    elif len(done) == 1:
        choice = ["--grid", f"layer={','.join(layers[0])}"] if len(layers[0]) > 1 else []
        print_next(common, "sweep" if choice else "train-head", names[0], *choice)
    elif all(len(own) == 1 for own in layers):
        print_next(common, "sweep", *names)
    else:
        print_next(common, "ls")


def _has_labels(extraction: Extraction) -> bool:
    """Whether a head can be trained on it: on at least two classes, or on another kind of label."""
    images = extraction.images
    if images is None or "train" not in extraction.rows:
        return False
    return len(images.classes) > 1 or any(target.name == LABEL for target in images.targets)


def _describe_shares(shares: dict[str, float]) -> str:
    """The largest share of the time first: "compute 93 %, decode 6 %, write 1 %"."""
    ranked = sorted(shares.items(), key=lambda share: -share[1])
    return ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in ranked if share >= 0.005)


def _size(extraction: Extraction) -> list[tuple[str, str]]:
    if not extraction.complete:
        return [("state", "unfinished: a shard of it is computed, others are not")]
    files = sorted(extraction.cache.glob("*.h5")) if extraction.cache.is_dir() else [extraction.cache]
    several = f" in {len(files):,} files" if len(files) > 1 else ""
    return [("size", human_bytes(sum(file.stat().st_size for file in files)) + several)]


def _show(extraction: Extraction) -> None:
    print_line(*_headline(extraction))
    time = f", {_describe_shares(extraction.shares)}" if extraction.shares else ""
    print_pairs(
        [
            ("cache", human_path(extraction.cache)),
            *_size(extraction),
            *([("images", human_rows(extraction.rows))] if extraction.images is None else extraction.images.rows()),
            ("features", ", ".join(f"{dim:,} ({layer})" for layer, dim in extraction.feature_dim.items())),
            ("took", f"{human_seconds(extraction.seconds)}{time}"),
        ]
    )
    if not extraction.complete:
        print_line("the last shard to end publishes the cache")
    for skipped in extraction.skipped:
        print_line(f"skipped {skipped.id}: {skipped.reason}")


def _headline(extraction: Extraction) -> tuple[Bold, str]:
    """What was computed, or that nothing had to be."""
    skipped = f", {len(extraction.skipped):,} skipped" if extraction.skipped else ""
    if not extraction.computed:
        return Bold(human_count(extraction.reused, "image")), f" reused, none had to be computed{skipped}"
    speed = f" at {extraction.images_per_s:,.1f} images/s" if extraction.images_per_s else ""
    reused = f", {extraction.reused:,} reused" if extraction.reused else ""
    return Bold(human_count(extraction.computed, "image")), f" computed{speed}{reused}{skipped}"
