"""`featcache search`: the cached images that are most similar to an image."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.groups import Only
from featcache.cli.options import Common
from featcache.cli.predict import SECTION, replace_dash
from featcache.cli.printing import Bold, human_count, print_json, print_line, print_next, print_table
from featcache.cli.terminal import Terminal
from featcache.extraction.execution import ComputeOptions
from featcache.inference.options import MovedWeights, SearchOptions

if TYPE_CHECKING:
    from featcache.inference import Found


def register(app: typer.Typer) -> None:
    """Add `search` to the typer app."""

    @command(
        app,
        "search",
        section=SECTION,
        examples=(
            "featcache search cifar10-vgg16 cat.jpg -k 5",
            "featcache search photos train/cat/0001.jpg --split train",
        ),
    )
    def search(
        cache: Annotated[
            str,
            typer.Argument(
                metavar="CACHE",
                autocompletion=completion.caches,
                help="A cache: its path, its name, or how that begins.",
            ),
        ],
        images: Annotated[
            list[str],
            typer.Argument(
                metavar="IMAGES",
                help="Images, folders or archives, or ids of images of the cache; - reads stdin: an image, or paths, "
                "one a line.",
            ),
        ],
        *,
        what: SearchOptions,
        weights: MovedWeights,
        how: Annotated[ComputeOptions, Only("device")],
        common: Common,
    ) -> None:
        """Find the cached images that are most similar to an image.

        Features are compared by their cosine. Those of an image that is in the cache are read from there; those of any
        other image are computed by the cache's own backbone and weights. The cache's rows are read once.
        """
        from featcache.cache.catalog import find
        from featcache.inference.similarity import search

        with Terminal(quiet=common.quiet):
            found = search(
                find(common.features_dir, cache).require_complete(),
                replace_dash(images),
                weights=weights.by_name,
                data_dir=common.data_dir,
                device=how.device,
                **asdict(what),
            )
        print_json(found.to_json()) if common.json else _show(found, common)


def _show(found: Found, common: Common) -> None:
    for number, image in enumerate(found.images):
        if number:
            print_line()
        print_line(Bold(image.path), " (in the cache)" if image.cached else "")
        rows = [
            (f"{near.similarity:.3f}", near.id, near.label or "unlabelled", near.split) for near in image.neighbours
        ]
        print_table(rows, header=("similarity", "image", "label", "split"), optional=1, shorten=(1,))
    print_line()
    print_line(f"of {human_count(found.rows, 'image')} of {found.cache}, by {' + '.join(found.layers)}")
    print_next(common, "info", found.cache)
