"""`featcache benchmark`: measures on this machine what caching gains."""

from __future__ import annotations

import shlex
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.output_folder import prepare_folder, publish
from featcache.cli.printing import print_json, print_line, print_table
from featcache.cli.terminal import Terminal
from featcache.config import Option, check

if TYPE_CHECKING:
    from featcache.benchmark.kinds import AnyResult
    from featcache.benchmark.scenarios import Scenario

_WHAT = "What is measured"
_RESULT = "The result"


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
    dataset: Annotated[
        str | None,
        Option(
            help="A set of `featcache datasets`, or a folder, zip or tar of class/image.",
            flags=(
                "--dataset",
                "-d",
            ),
            metavar="<name or path>",
            panel=_WHAT,
        ),
    ] = None
    backbone: Annotated[
        str | None,
        Option(
            help="A network of `featcache backbones`.",
            flags=(
                "--backbone",
                "-b",
            ),
            metavar="<name>",
            panel=_WHAT,
        ),
    ] = None
    weights: Annotated[str | None, Option(help="What extract's --weights takes.", metavar="<source>", panel=_WHAT)] = (
        None
    )
    image_size: Annotated[int | None, Option(help="Pixels a side.", metavar="<pixels>", panel=_WHAT)] = None
    images: Annotated[int | None, Option(help="So many images of each split.", metavar="<images>", panel=_WHAT)] = None
    epochs: Annotated[int | None, Option(help="Of each head.", metavar="<epochs>", panel=_WHAT)] = None
    heads: Annotated[int | None, Option(help="How many heads are tried.", metavar="<heads>", panel=_WHAT)] = None
    sample: Annotated[
        int | None,
        Option(
            help="End to end is measured on so many images of each split, and scaled.", metavar="<images>", panel=_WHAT
        ),
    ] = None
    sample_epochs: Annotated[
        int | None,
        Option(help="And for so many epochs.", metavar="<epochs>", panel=_WHAT),
    ] = None
    device: Annotated[str, Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>", panel=_WHAT)] = "auto"
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
    def benchmark(options: BenchmarkOptions, common: Common) -> None:
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
                scenario_of(options),
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


def scenario_of(options: BenchmarkOptions) -> Scenario:
    """The scenario that the options describe. Raises UnknownName or InvalidOption."""
    from featcache.benchmark import scenario

    names = ("dataset", "backbone", "weights", "image_size", "images", "epochs", "heads", "sample", "sample_epochs")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(scenario(options.scenario), device=options.device, **given)


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
