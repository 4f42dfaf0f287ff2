"""`featcache sweep`: many heads over one cache, ranked.

Everything that trains more than one head lives here, folds and few-shot draws too: `train-head` answers with one
head, a sweep with a table and the head that it chose.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.options import Common, FeatureMemory, in_bytes, number_or_auto
from featcache.cli.printing import human_seconds, print_json, print_line, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.cli.train import HeadOptions, Wanted, every_layer, find
from featcache.extraction.request import StorageOptions
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    from featcache.sweep.records import Sweep

_CACHE = "On which cache"
_SWEEP = "The sweep"
_MOST_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which heads, and on which rows each of them is trained."""

    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="Values of an option, as in lr=1e-3,1e-2; may be repeated, for all combinations. Any option of the "
            "head below, and hidden=64,128-64 for the sizes of its hidden layers, layer=a,b+c for what it reads.",
            metavar="<name=values>",
            rich_help_panel=_SWEEP,
        ),
    ] = None
    seeds: Annotated[
        int,
        typer.Option(
            help="Train each so often, from --seed on, and rank by the mean.", metavar="<n>", rich_help_panel=_SWEEP
        ),
    ] = 1
    folds: Annotated[
        int | None,
        typer.Option(
            help="Hold out each of so many parts of train once, and rank by the accuracy there.",
            metavar="<n>",
            rich_help_panel=_SWEEP,
        ),
    ] = None
    shots: Annotated[
        str | None,
        typer.Option(
            help="Train on so many images a class, as in 1,5,10, drawn from train once val is cut off.",
            metavar="<images>",
            rich_help_panel=_SWEEP,
        ),
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(help="Random draws for each of --shots. [default: 5]", metavar="<n>", rich_help_panel=_SWEEP),
    ] = None
    feature_memory: FeatureMemory = None
    threads: Annotated[
        str,
        typer.Option(
            help="For heads that are trained by steps on the CPU. auto tries whether one is faster than all.",
            metavar="<n>",
            rich_help_panel=_SWEEP,
        ),
    ] = "auto"


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "sweep", section="From images to a head")
    def sweep(
        cache: Annotated[
            str | None,
            typer.Argument(help="Its path, its name from `featcache ls`, or how that begins.", rich_help_panel=_CACHE),
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
        *,
        context: typer.Context,
        which: SweepOptions,
        head: HeadOptions,
        what: BackboneOptions,
        storage: StorageOptions,
        images: ImageOptions,
        common: Common,
    ) -> None:
        """Train many heads at once and keep the best.

        Every combination of the --grid values is trained; features are read once for all of them, and small heads
        train as one. Val ranks; test is looked at for the chosen head alone, which becomes an ordinary run. The table
        is kept beside the runs, as JSON, CSV and Markdown.
        """
        from featcache.extraction import matching
        from featcache.sweep.grid import parse_grid
        from featcache.sweep.sweeping import sweep

        grid, shots = parse_grid(which.grid or ()), _whole_numbers(which.shots)
        options = asdict(head)
        with Terminal(quiet=common.quiet) as terminal:
            wanted = Wanted.of(context, what, storage, images, common)
            found = find(cache, wanted)
            others = [matching.by_name(common.features_dir, name).path for name in beside or ()]
            layer = wanted.request.layers or (every_layer([found.path, *others]) if concat else found.layers)
            done = sweep(
                found.path,
                grid=grid,
                seeds=which.seeds,
                folds=which.folds,
                shots=shots,
                draws=which.draws,
                threads=number_or_auto(which.threads, "--threads"),
                resident_bytes=in_bytes(which.feature_memory),
                beside=others,
                layer=None if "layer" in grid else layer,
                runs_dir=common.runs_dir,
                progress=lambda epochs, total: terminal.advance("sweeping", epochs, total),
                report=terminal.say,
                **options,
            )
        if common.json:
            print_json(done.to_json())
        else:
            _show(done)
        if done.interrupted:
            raise typer.Exit(INTERRUPTED)


def _whole_numbers(text: str | None) -> tuple[int, ...]:
    """`1,5,10` -> (1, 5, 10); a usage error for anything else."""
    numbers = [] if text is None else [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise typer.BadParameter(f"expected whole numbers such as 1,5,10, got {text!r}", param_hint="--shots")
    return tuple(map(int, numbers))


def _show(done: Sweep) -> None:
    from featcache.sweep.tables import MARKDOWN_FILE, table_of

    table = table_of(done)
    print_table(table.rows[:_MOST_SHOWN], header=table.header)
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
    test = "-" if done.test is None else f"{100 * done.test.accuracy:.2f} %, loss {done.test.loss:.4f}"
    chosen = [f"{name} {value}" for name, value in done.chosen.items() if value is not None]
    return [
        ("chosen", ", ".join([done.best.config.head, *_said(done), *chosen])),
        ("test", test),
        ("heads", f"{heads:,}{together}"),
        ("took", human_seconds(done.seconds) + (", interrupted" if done.interrupted else "")),
        *(("cache", cache) for cache in done.caches),
        ("run", "-" if done.run is None else str(done.run)),
        ("sweep", str(done.folder)),
    ]


def _said(done: Sweep) -> list[str]:
    return [f"{name} {value}" for name, value in done.best.said.items() if name not in ("head", "hidden")]
