"""`featcache benchmark`: what caching gains here, on this machine, measured."""

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
        typer.Option(
            help="quick (digits, a minute), cifar10-vgg16, cifar10-inception, many-heads, growth, bigger-than-memory "
            "(minutes to half an hour). What is said below changes it.",
            metavar="<name>",
            rich_help_panel=_WHAT,
        ),
    ] = "quick"
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A set of `featcache datasets`, or a folder, zip or tar of class/image.",
            metavar="<name or path>",
            rich_help_panel=_WHAT,
        ),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", help="A network of `featcache backbones`.", metavar="<name>", rich_help_panel=_WHAT
        ),
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="What extract's --weights takes.", metavar="<source>", rich_help_panel=_WHAT)
    ] = None
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side.", metavar="<pixels>", rich_help_panel=_WHAT)
    ] = None
    images: Annotated[
        int | None, typer.Option(help="So many images of each split.", metavar="<images>", rich_help_panel=_WHAT)
    ] = None
    epochs: Annotated[int | None, typer.Option(help="Of each head.", metavar="<epochs>", rich_help_panel=_WHAT)] = None
    heads: Annotated[
        int | None, typer.Option(help="How many heads are tried.", metavar="<heads>", rich_help_panel=_WHAT)
    ] = None
    sample: Annotated[
        int | None,
        typer.Option(
            help="End to end is measured on so many images of each split, and scaled.",
            metavar="<images>",
            rich_help_panel=_WHAT,
        ),
    ] = None
    sample_epochs: Annotated[
        int | None,
        typer.Option(help="And for so many epochs.", metavar="<epochs>", rich_help_panel=_WHAT),
    ] = None
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>", rich_help_panel=_WHAT)
    ] = "auto"
    output: Annotated[
        Path | None,
        typer.Option(
            help="Also write benchmark.json, benchmark.md and charts (SVG, PNG, Vega-Lite) there.",
            metavar="<folder>",
            rich_help_panel=_RESULT,
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "benchmark", section="From images to a head")
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
                chosen(options),
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


def chosen(options: BenchmarkOptions) -> Scenario:
    """The scenario that the options describe. Raises UnknownName or InvalidOption."""
    from featcache.benchmark import scenario

    names = ("dataset", "backbone", "weights", "image_size", "images", "epochs", "heads", "sample", "sample_epochs")
    said = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(scenario(options.scenario), device=options.device, **said)


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
