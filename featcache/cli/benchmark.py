"""`featcache benchmark`: measures on this machine what caching gains."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.benchmark.options import BenchmarkOptions, scenario
from featcache.cli.commands import command
from featcache.cli.groups import Given, Only
from featcache.cli.options import Common
from featcache.cli.output_folder import prepare_folder, publish
from featcache.cli.printing import print_json, print_line, print_table, print_wrapped
from featcache.cli.terminal import Terminal
from featcache.config import Option
from featcache.extraction.execution import ComputeOptions

if TYPE_CHECKING:
    from featcache.benchmark.result import Result

_NOT_TAKEN = ("split_by_folder", "splits", "select_seed", "layers", "pool", "resize", "normalize")


def register(app: typer.Typer) -> None:
    """Add `benchmark` to the typer app."""

    @command(
        app,
        "benchmark",
        section="From images to a head",
        examples=(
            "featcache benchmark",
            "featcache benchmark -d photos/ -b resnet50 --head linear --output charts/",
        ),
    )
    def benchmark(
        name: Annotated[
            str,
            typer.Argument(
                help="quick, cifar10-vgg16 or cifar10-inception. quick takes a minute, the others half an hour. The "
                "options below change it.",
                metavar="SCENARIO",
            ),
        ] = "quick",
        *,
        context: typer.Context,
        given: Annotated[dict[str, Any], Given(BenchmarkOptions, without=_NOT_TAKEN, default="the scenario's")],
        how: Annotated[ComputeOptions, Only("device")],
        output: Annotated[
            Path | None,
            Option(
                help="Also write benchmark.json, .md and .svg (a chart) there.", metavar="<folder>", panel="The result"
            ),
        ] = None,
        common: Common,
    ) -> None:
        """Measure what keeping a network's outputs gains here.

        The same head is trained four ways, each in a process of its own: with the network in every epoch, as a notebook
        does it and with all of featcache's speed; and on cached features, extraction counted and not.
        """
        options = replace(scenario(name), **given, device=how.device)
        from datetime import UTC, datetime

        from featcache.benchmark.run import run_benchmark
        from featcache.benchmark.showing import files

        if output is not None:
            prepare_folder(output)
        with Terminal(quiet=common.quiet) as terminal:
            result = run_benchmark(
                options,
                data_dir=common.data_dir,
                command=shlex.join(["featcache", *sys.argv[1:]]),
                today=datetime.now(UTC).date(),
                reporter=terminal,
            )
        if output is not None:
            publish(files(result), output)
        if common.json:
            print_json(result.to_json())
        else:
            show(result)


def show(result: Result) -> None:
    """A sentence, a table with bars, and notes: 15 lines of 80 columns for `quick`."""
    from featcache.benchmark.result import WAYS
    from featcache.benchmark.showing import bar, cells, header, notes, sentence

    print_wrapped(sentence(result), width=79)
    print_line()
    bars = "time" if result.options.heads == 1 else f"time, all {result.options.heads}"
    print_table([(*cells(result, way), bar(result, way)) for way in WAYS], header=(*header(result), bars))
    print_wrapped(" ".join(notes(result)), width=79)
