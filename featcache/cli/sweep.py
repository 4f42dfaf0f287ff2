"""`featcache sweep`: many heads over one cache or several, ranked.

Everything that trains more than one head lives here, folds and few-shot draws too: `train-head` answers with one
head, a sweep with a table and the head that it chose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli import completion
from featcache.cli.clock import seconds_so_far
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.groups import Given
from featcache.cli.options import Common
from featcache.cli.printing import human_seconds, print_json, print_line, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.cli.train import Wanted, every_layer, find, others_of, refuse_settled, score_text
from featcache.extraction.request import StorageOptions
from featcache.heads.config import HeadConfig
from featcache.images.options import ImageOptions
from featcache.sweeps.options import SweepOptions
from featcache.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featcache.extraction.named import Found
    from featcache.sweeps.grid import Grid
    from featcache.sweeps.records import Sweep

_CACHE = "On which caches"
_SWEEP = "The sweep"
_MOST_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "sweep", section="From images to a head")
    def sweep(
        caches: Annotated[
            list[str] | None,
            typer.Argument(
                autocompletion=completion.caches,
                help="Each by its path, its name from `featcache ls`, or how that begins. Several of the same images "
                "are compared: each is a value of the grid.",
                metavar="cache",
                rich_help_panel=_CACHE,
            ),
        ] = None,
        beside: Annotated[
            list[str] | None,
            typer.Option(
                "--with",
                help="A further cache of the same images, whose features stand beside; may be repeated.",
                metavar="<cache>",
                rich_help_panel=_CACHE,
            ),
        ] = None,
        concat: Annotated[
            bool, typer.Option("--concat", help="Read all layers, side by side.", rich_help_panel=_CACHE)
        ] = False,
        grid: Annotated[
            list[str] | None,
            typer.Option(
                help="Values of an option, as in dropout=0,0.5; may be repeated, for all combinations. Any option of "
                "the head below; head=linear,mlp:128-64 for heads, whose sizes are joined by -; layer=a,b+c for what "
                "is read.",
                metavar="<name=values>",
                rich_help_panel=_SWEEP,
            ),
        ] = None,
        resume: Annotated[
            str | None,
            typer.Option(
                help="Go on with a sweep that was killed or interrupted: last, or its folder in --runs-dir. All other "
                "options are as they were then.",
                metavar="<sweep>",
                rich_help_panel=_SWEEP,
            ),
        ] = None,
        *,
        context: typer.Context,
        which: Annotated[dict[str, Any], Given(SweepOptions)],
        head: Annotated[dict[str, Any], Given(HeadConfig, without=("layers",))],
        how: Annotated[dict[str, Any], Given(TrainingOptions, without=("logger", "trainer"))],
        what: BackboneOptions,
        storage: StorageOptions,
        images: ImageOptions,
        common: Common,
    ) -> None:
        """Train many heads at once and keep the best.

        Every combination of the --grid values is trained, on every cache; features are read once for all of them, and
        small heads train as one. Val ranks; test is looked at for the chosen head alone, which becomes an ordinary
        run. The table is kept beside the runs, as JSON, CSV and Markdown.
        """
        from featcache.sweeps.grid import parse_grid

        values = parse_grid(grid or ())
        with Terminal(quiet=common.quiet) as terminal:
            running: dict[str, Any] = {
                "progress": lambda epochs, total: terminal.advance("sweeping", epochs, total),
                "report": terminal.say,
                "runs_dir": common.runs_dir,
            }
            if resume is not None:
                done = _resumed(resume, context, how, running)
            else:
                wanted = Wanted.of(context, what, storage, images, common)
                found = [find(name, wanted) for name in caches] if caches else [find(None, wanted)]
                paths = [one.path for one in found]
                others = others_of(wanted, beside or ())
                layers = wanted.request.layers or (every_layer([*paths, *others]) if concat else _layers(found))
                options = which | head | how
                if layers and "layer" not in values:
                    options["layers"] = layers
                done = _swept(paths, values, others, running | options)
        if common.json:
            print_json(done.to_json())
        else:
            _show(done)
        if done.interrupted:
            raise typer.Exit(INTERRUPTED)


def _resumed(name: str, context: typer.Context, how: dict[str, Any], running: dict[str, Any]) -> Sweep:
    from featcache.sweeps.api import resume_sweep

    refuse_settled(context)
    return resume_sweep(name, **running, **how)


def _swept(paths: Sequence[Path], grid: Grid, beside: Sequence[Path], options: dict[str, Any]) -> Sweep:
    from featcache.sweeps.api import sweep

    return sweep(paths, grid=grid, beside=beside, **options)


def _layers(found: Sequence[Found]) -> Sequence[str]:
    """The layers that finding the only cache has settled; of several caches, each reads its own."""
    return found[0].layers or () if len(found) == 1 else ()


def _show(done: Sweep) -> None:
    from featcache.sweeps.tables import MARKDOWN_FILE, table_of

    table = table_of(done)
    print_table(table.rows[:_MOST_SHOWN], header=table.header, line_after=table.tied)
    more = len(table.rows) - _MOST_SHOWN
    if more > 0:
        print_line(f"... and {more:,} more in {done.folder / MARKDOWN_FILE}")
    print_line()
    for line in table.legend:
        print_line(line)
    print_line()
    print_pairs([*_pairs(done)])


def _pairs(done: Sweep) -> list[tuple[str, str]]:
    heads = sum(len(row.heads) for row in done.rows)
    stacks = [size for size in done.stacks if size > 1]
    together = f", {sum(stacks):,} of them in stacks of {min(stacks)} to {max(stacks)}" if stacks else ""
    test = "-" if done.test is None else f"{score_text(done.test)}, loss {done.test.loss:.4f}"
    stopped = ", interrupted" if done.interrupted else ""
    chosen = [f"{name} {value}" for name, value in done.chosen.items() if value is not None]
    return [
        ("test", test),
        ("chosen", ", ".join([done.best.config.head, *_said(done), *chosen])),
        ("heads", f"{heads:,}{together}"),
        ("took", f"{human_seconds(seconds_so_far())}, sweep {human_seconds(done.seconds)}{stopped}"),
        *(("cache", cache) for cache in done.caches),
        ("run", "-" if done.run is None else str(done.run)),
        ("sweep", str(done.folder)),
    ]


def _said(done: Sweep) -> list[str]:
    return [f"{name} {value}" for name, value in done.best.values.items() if name != "head"]
