"""`featcache benchmark`: measures on this machine what caching gains."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli.commands import command
from featcache.cli.groups import Given, Only
from featcache.cli.options import Common
from featcache.cli.output_folder import prepare_folder, publish
from featcache.cli.printing import print_json, print_line, print_table
from featcache.cli.terminal import Terminal
from featcache.config import Option, check
from featcache.extraction.execution import ComputeOptions
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    from featcache.benchmark.kinds import AnyResult
    from featcache.benchmark.scenarios import Scenario

_WHAT = "What is measured"
_RESULT = "The result"
_OF_SCENARIO = "the scenario's"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """A scenario, and what is different from it."""

    scenario: Annotated[
        str,
        Option(
            help="quick, cifar10-vgg16, cifar10-inception, many-heads, growth or bigger-than-memory. quick takes a "
            "minute on digits, the others minutes to half an hour. The options below change it.",
            metavar="<name>",
            panel=_WHAT,
        ),
    ] = "quick"
    epochs: Annotated[int | None, Option(help="Of each head.", metavar="<epochs>", least=1, panel=_WHAT)] = None
    heads: Annotated[int | None, Option(help="How many heads are tried.", metavar="<heads>", least=1, panel=_WHAT)] = (
        None
    )
    output: Annotated[
        Path | None,
        Option(
            help="Also write benchmark.json, benchmark.md and charts (SVG, PNG, Vega-Lite) there.",
            metavar="<folder>",
            panel=_RESULT,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    """Add `benchmark` to the typer app."""

    @command(
        app,
        "benchmark",
        section="From images to a head",
        examples=(
            "featcache benchmark",
            "featcache benchmark --scenario cifar10-vgg16 --output charts/",
        ),
    )
    def benchmark(
        context: typer.Context,
        options: BenchmarkOptions,
        images: Annotated[
            dict[str, Any],
            Given(ImageOptions, without=("split_by_folder", "splits", "select_seed"), default=_OF_SCENARIO),
        ],
        features: Annotated[
            dict[str, Any],
            Given(BackboneOptions, without=("layers", "pool", "resize", "normalize"), default=_OF_SCENARIO),
        ],
        how: Annotated[ComputeOptions, Only("device")],
        common: Common,
    ) -> None:
        """Measure what caching gains here: end to end against cached.

        The same head is trained four ways, each in a process of its own: with the network in every step, as a notebook
        does it and with all of featcache's speed; and on cached features, extraction counted and not.
        """
        from datetime import UTC, datetime

        from featcache.benchmark.kinds import files, measure

        if options.output is not None:
            prepare_folder(options.output)
        with Terminal(quiet=common.quiet) as terminal:
            result = measure(
                scenario_of(options, images | features | {"device": how.device}),
                data_dir=common.data_dir,
                command=shlex.join(["featcache", *sys.argv[1:]]),
                today=datetime.now(UTC).date(),
                reporter=terminal,
            )
        if options.output is not None:
            publish(files(result), options.output)
        if common.json:
            print_json(result.to_json())
        else:
            show(result)


def scenario_of(options: BenchmarkOptions, given: Mapping[str, Any]) -> Scenario:
    """The scenario that the options describe. Raises UnknownName or InvalidOption."""
    from featcache.benchmark import scenario

    own = {name: getattr(options, name) for name in ("epochs", "heads")}
    changed = dict(given) | {name: value for name, value in own.items() if value is not None}
    if "limit" in changed:
        changed["images"] = changed.pop("limit")
    return replace(scenario(options.scenario), **changed)


def show(result: AnyResult) -> None:
    """One screen of 80 columns and 24 lines."""
    from featcache.benchmark.kinds import screen

    shown = screen(result)
    for text in shown.before:
        _print_wrapped(text)
    print_line()
    print_table(shown.rows, header=shown.header)
    print_line()
    for text in shown.after:
        _print_wrapped(text)


def _print_wrapped(text: str) -> None:
    for line in textwrap.wrap(text, 79):
        print_line(line)
