"""`featcache run`: runs an experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import sweep, train
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.extract import show_extractions
from featcache.cli.options import Common
from featcache.cli.printing import print_json, print_line, print_next
from featcache.cli.report import show_report
from featcache.cli.terminal import Terminal

if TYPE_CHECKING:
    from featcache.experiments.running import ExperimentResult


def register(app: typer.Typer) -> None:
    """Add `run` to the typer app."""

    @command(
        app,
        "run",
        section="From images to a head",
        examples=("featcache run experiment.toml", "featcache run runs/NAME/experiment.toml --json"),
    )
    def run(
        experiment: Annotated[
            Path,
            typer.Argument(
                metavar="EXPERIMENT",
                help="A TOML file. Its tables are images, backbones, head, grid and others; their names are those of "
                "the options in Python. Every run has such a file, experiment.toml, which repeats it.",
            ),
        ],
        *,
        common: Common,
    ) -> None:
        """Extract, train and report as a TOML file describes.

        Features that exist are not computed again. With several backbones, or with a grid, a sweep is trained, else one
        head. Relative paths are relative to the file.
        """
        from featcache.experiments.running import run_experiment

        with Terminal(quiet=common.quiet) as terminal:
            done = run_experiment(experiment, data_dir=common.data_dir, runs_dir=common.runs_dir, reporter=terminal)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done, common)
        if done.interrupted:
            raise typer.Exit(INTERRUPTED)


def _show(done: ExperimentResult, common: Common) -> None:
    show_extractions(done.caches)
    print_line()
    if done.sweep is not None:
        sweep.show_sweep(done.sweep)
    elif done.run is not None:
        train.show_run(done.run)
    if done.report is not None and done.run is not None:
        print_line()
        show_report(done.report)
        print_next(common, "export", done.run.folder.name, "--output", "head.pt2")
    elif done.sweep is not None:
        sweep.show_next(done.sweep, common)
    elif done.run is not None:
        train.show_next(done.run, common)
