"""`featcache sweep`: many heads over one cache or several, ranked.

Everything that trains more than one head lives here, folds and few-shot draws too: `train-head` answers with one
head, a sweep with a table and the head that it chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from featcache.cli import completion
from featcache.cli.clock import seconds_so_far
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.finding import CacheOptions
from featcache.cli.groups import Given
from featcache.cli.options import Common
from featcache.cli.printing import Bold, human_path, print_json, print_line, print_next, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.cli.train import METRICS, RowsToRead, find, refuse_settled, score_text
from featcache.cli.usage import usage_errors
from featcache.config import Option, check
from featcache.heads.config import HeadConfig
from featcache.sweeps.options import SweepOptions
from featcache.text import human_seconds
from featcache.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featcache.sweeps.grid import Grid
    from featcache.sweeps.records import Sweep
    from featcache.sweeps.tables import Table

_MOST_SHOWN = 20
# The columns that a narrow terminal leaves out, the last one first.
_LAST = ("loss", "epochs", "seconds")


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Which heads are trained."""

    PANEL: ClassVar[str] = SweepOptions.PANEL

    grid: Annotated[
        tuple[str, ...],
        Option(
            help="Values of an option, as in lr=1e-3,1e-2. May be repeated, for all combinations. Any option "
            "of the head (also momentum, min_delta, val_seed); head=linear,mlp:128-64 for heads, whose "
            "sizes are joined by -; layer=a,b+c for what is read.",
            metavar="<name=values>",
            default="one head",
        ),
    ] = ()
    resume: Annotated[
        str | None,
        Option(
            help="Continue a sweep: latest, or its folder. One that was killed or interrupted; all other "
            "options are as they were then.",
            metavar="<sweep>",
            default="none",
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)


def register(app: typer.Typer) -> None:
    """Add `sweep` to the typer app."""

    @command(
        app,
        "sweep",
        section="From images to a head",
        examples=(
            "featcache sweep --grid lr=1e-3,1e-2 --grid dropout=0,0.5 --seeds 3",
            "featcache sweep cifar10-vgg16 cifar10-resnet18 --head logreg --shots 1,5,20",
        ),
    )
    def sweep(
        caches: Annotated[
            list[str] | None,
            typer.Argument(
                autocompletion=completion.caches,
                help="Names or paths of caches of the same images. Several are compared; names are those of featcache "
                "ls, and how a name begins is enough. [default: the only one that fits]",
                metavar="CACHE",
                rich_help_panel=CacheOptions.PANEL,
            ),
        ] = None,
        *,
        context: typer.Context,
        which: CacheOptions,
        rows: RowsToRead,
        tried: GridOptions,
        repeated: Annotated[dict[str, Any], Given(SweepOptions)],
        head: Annotated[dict[str, Any], Given(HeadConfig)],
        how: Annotated[dict[str, Any], Given(TrainingOptions, without=("logger", "trainer"))],
        common: Common,
    ) -> None:
        """Train many heads at once and keep the best.

        Every combination of the --grid values is trained, on every cache. Features are read once for all of them, and
        small heads are trained together. Val ranks the heads; test is evaluated for the chosen head alone, which
        becomes an ordinary run. The table is kept in the runs folder, as JSON, CSV and Markdown.
        """
        from featcache.sweeps.grid import combinations, parse_grid

        with usage_errors():
            values = parse_grid(tried.grid)
            combinations(head, values, caches or ())
            SweepOptions(**repeated)
        with Terminal(quiet=common.quiet) as terminal:
            running: dict[str, Any] = {
                "progress": lambda epochs, total: terminal.advance("sweeping", epochs, total),
                "report": terminal.info,
                "runs_dir": common.runs_dir,
            }
            if tried.resume is not None:
                done = _resume(tried.resume, context, how, running)
            else:
                paths = [find(name, which, rows, head, common) for name in caches or (None,)]
                others = rows.caches(common)
                done = _sweep(paths, values, others, running | repeated | head | how)
        if common.json:
            print_json(done.to_json())
        else:
            show_sweep(done)
            show_next(done, common)
        if done.interrupted:
            raise typer.Exit(INTERRUPTED)


def _resume(name: str, context: typer.Context, how: dict[str, Any], running: dict[str, Any]) -> Sweep:
    from featcache.sweeps.api import resume_sweep

    refuse_settled(context)
    return resume_sweep(name, **running, **how)


def _sweep(paths: Sequence[Path], grid: Grid, others: Sequence[Path], options: dict[str, Any]) -> Sweep:
    from featcache.sweeps.api import sweep

    return sweep(paths, grid=grid, beside=others, **options)


def show_sweep(done: Sweep) -> None:
    """Print the result of a sweep, its table, and where it is."""
    from featcache.sweeps.tables import MARKDOWN_FILE, table_of

    table = table_of(done)
    _show_result(done)
    header, rows = _choose_columns(done, table)
    names = [number for number, name in enumerate(header) if name in done.grid]
    print_table(rows[:_MOST_SHOWN], header=header, optional=len(_LAST), shorten=names, line_after=table.tied)
    more = len(rows) - _MOST_SHOWN
    if more > 0:
        print_line(f"and {more:,} more in {human_path(done.folder / MARKDOWN_FILE)}")
    print_line()
    for line in table.legend:
        print_line(line)
    print_line()
    print_pairs([*_pairs(done)])


def _show_result(done: Sweep) -> None:
    """The score that matters: on test, or where test was not evaluated that by which the heads were ranked."""
    estimate = done.best.estimate
    score, part = done.test, "test"
    if score is None and estimate is not None:
        score, part = estimate.score, done.judge
    if score is not None:
        chosen = ", ".join([done.best.config.head, *_values_of_choice(done)])
        print_line(Bold(score_text(score)), f" {METRICS[score.metric]} on {part}, loss {score.loss:.4f}: {chosen}")
        print_line()


def _choose_columns(done: Sweep, table: Table) -> tuple[list[str], list[list[str]]]:
    """The columns in which there is something, those that matter least last."""
    columns = [
        (name, cells)
        for name, cells in zip(table.header, zip(*table.rows, strict=True), strict=True)
        if any(cell not in ("", "-") for cell in cells)
    ]
    columns.sort(key=lambda column: _LAST.index(column[0]) if column[0] in _LAST else -1)
    solved = {row.config.architecture.solved for row in done.rows}
    # A solver has no epochs: it tries candidates.
    steps = "tried" if solved == {True} else "epochs" if solved == {False} else "epochs/tried"
    header = [steps if name == "epochs" else name for name, _ in columns]
    return header, [[*row] for row in zip(*(cells for _, cells in columns), strict=True)]


def _pairs(done: Sweep) -> list[tuple[str, str]]:
    heads = sum(len(row.heads) for row in done.rows)
    stacked = sum(size for size in done.stacks if size > 1)
    together = f", {stacked:,} of them trained together" if stacked else ""
    stopped = ", interrupted" if done.interrupted else ""
    return [
        ("heads", f"{heads:,}{together}"),
        ("took", f"{human_seconds(seconds_so_far())}, sweep {human_seconds(done.seconds)}{stopped}"),
        *(("cache", human_path(cache)) for cache in done.caches),
        *([] if done.run is None else [("run", human_path(done.run))]),
        ("sweep", human_path(done.folder)),
    ]


def _values_of_choice(done: Sweep) -> list[str]:
    """What was chosen besides the head; the seed only where there are several."""
    values = [f"{name} {value}" for name, value in done.best.values.items() if name != "head"]
    chosen = {name: value for name, value in done.chosen.items() if value is not None and name not in done.best.values}
    return values + [f"{name} {value}" for name, value in chosen.items() if name != "seed" or len(done.seeds) > 1]


def show_next(done: Sweep, common: Common) -> None:
    """Print the command that resumes the sweep, or shows the report of its run."""
    from featcache.training.checkpoint_file import CHECKPOINT_FILE

    if (done.folder / CHECKPOINT_FILE).is_file():
        print_next(common, "sweep", "--resume", done.folder.name)
    elif done.run is not None:
        print_next(common, "report", done.run.name)
