"""`featcache train-head`: trains a head on a cache and evaluates it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from featcache.cli.clock import seconds_so_far
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.finding import CACHE, CacheOptions
from featcache.cli.groups import Given, names_of_given
from featcache.cli.options import Common
from featcache.cli.printing import (
    Bold,
    human_count,
    human_path,
    print_json,
    print_line,
    print_next,
    print_pairs,
    print_table,
)
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage, usage_errors
from featcache.config import Option, check
from featcache.heads.config import HeadConfig
from featcache.rows.options import ALL_LAYERS
from featcache.rows.views import describe_views
from featcache.text import human_seconds
from featcache.training.options import TrainingOptions

if TYPE_CHECKING:
    from featcache.heads.records import EpochRecord, Score
    from featcache.notebook.recipes import Recipe
    from featcache.runs.run import Run

#: In words: what a score's value is.
METRICS = {"accuracy": "accuracy", "map": "mAP", "r2": "R2"}


def register(app: typer.Typer) -> None:
    """Add `train-head` to the typer app."""

    @command(
        app,
        "train-head",
        section="From images to a head",
        examples=(
            "featcache train-head --head mlp:128,64 --max-epochs 20",
            "featcache train-head cifar10-vgg16 --target species --group patient --head logreg",
        ),
    )
    def train_head(
        cache: Annotated[str | None, CACHE] = None,
        *,
        context: typer.Context,
        which: CacheOptions,
        rows: RowsToRead,
        start: HowToStart,
        head: Annotated[dict[str, Any], Given(HeadConfig)],
        how: Annotated[dict[str, Any], Given(TrainingOptions)],
        common: Common,
    ) -> None:
        """Train a head on cached features, in seconds.

        The cache is named, or chosen by --backbone, --dataset, --layer and --target; several that fit are listed with
        what differs. Val decides which epoch is kept; test is evaluated once, at the end.
        """
        with Terminal(quiet=common.quiet) as terminal:

            def progress(epoch: EpochRecord) -> None:
                terminal.advance("solving" if epoch.candidate else "training", epoch.epoch, epoch.max_epochs)

            running: dict[str, Any] = {"progress": progress, "report": terminal.info, "runs_dir": common.runs_dir}
            if start.resume is not None:
                run = _resume(start.resume, context, how, running)
            else:
                with usage_errors():
                    recipe = None if start.recipe is None else _recipe(start.recipe)
                    config = HeadConfig.of(head, None if recipe is None else recipe.head)
                    TrainingOptions(**how).require_steps(config)
                path = find(cache, which, rows, head, common, recipe)
                others = rows.caches(common)
                if recipe is not None and (doubt := recipe.width_doubt(_width(path, others, config))):
                    terminal.warn(doubt)
                run = _train(path, others, config, running | how)
        if common.json:
            print_json(run.to_json())
        else:
            show_run(run)
            show_next(run, common)
        if run.training.interrupted:
            raise typer.Exit(INTERRUPTED)


def _train(cache: Path, others: Sequence[Path], config: HeadConfig, options: dict[str, Any]) -> Run:
    from featcache.runs.fit import fit_head

    return fit_head(cache, config, beside=others, **options)


def _resume(run: str, context: typer.Context, how: dict[str, Any], running: dict[str, Any]) -> Run:
    from featcache.runs.resuming import resume_head

    refuse_settled(context)
    return resume_head(run, **running, **how)


def refuse_settled(context: typer.Context) -> None:
    """Raises a usage error where an option stands next to --resume that was settled when the training began."""
    settled = names_of_given(context, context.params) - {"resume", "resident_bytes"}
    if settled:
        written = [parameter.opts[0] for parameter in context.command.params if parameter.name in settled]
        raise WrongUsage(
            f"with --resume all other options are as they were at first, got {', '.join(written)}",
            hint=f"leave out {', '.join(written)}",
        )


@dataclass(frozen=True, kw_only=True)
class RowsToRead:
    """Further caches that are read."""

    PANEL: ClassVar[str] = CacheOptions.PANEL

    others: Annotated[
        tuple[str, ...],
        Option(
            help="A further cache of the same images, whose features are read side by side; may be repeated.",
            flags=("--with",),
            metavar="<cache>",
            default="none",
            completion="caches",
            advanced=True,
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)

    def caches(self, common: Common) -> list[Path]:
        """The paths of those caches. Raises CacheError."""
        from featcache.cache.catalog import find

        return [find(common.features_dir, name).require_complete() for name in self.others]


@dataclass(frozen=True, kw_only=True)
class HowToStart:
    """What a training starts from."""

    PANEL: ClassVar[str] = "How it starts"

    recipe: Annotated[
        str | None,
        Option(
            help="Begin with a recipe's settings. One of `featcache recipes`; options that are given replace "
            "its settings.",
            metavar="<name>",
            default="none",
            completion="recipes",
        ),
    ] = None
    resume: Annotated[
        str | None,
        Option(
            help="Continue a training: latest, or its folder. One that was killed or interrupted; all other "
            "options are as they were then.",
            metavar="<run>",
            default="none",
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)


def find(
    name: str | None,
    which: CacheOptions,
    rows: RowsToRead,
    head: Mapping[str, Any],
    common: Common,
    recipe: Recipe | None = None,
) -> Path:
    """The complete cache that is meant: by name, by filters, or the only one there is.

    Raises CacheError, or InvalidOption for a backbone that contradicts the recipe.
    """
    if recipe is not None and which.backbone is not None:
        recipe.require_backbone(which.backbone)
    layers = head.get("layers") or ()
    # With several caches a layer may be that of any of them.
    layers = () if rows.others or layers == ALL_LAYERS else layers
    entry = which.find(
        common.features_dir,
        name,
        layers=layers,
        targets=head.get("target", ()),
        backbone=None if recipe is None or name is not None else recipe.backbone,
        image_size=None if recipe is None else recipe.input.image_size,
    )
    path = entry.require_complete()
    if recipe is not None and entry.spec is not None:
        recipe.require_backbone(entry.spec.backbone)
    return path


def _recipe(name: str) -> Recipe:
    from featcache.notebook.recipes import recipe

    return recipe(name)


def _width(cache: Path, others: Sequence[Path], config: HeadConfig) -> int:
    """How many features a row has, of all layers that are read."""
    from featcache.cache.reader import FeatureCache
    from featcache.rows.joining import choose_columns

    with ExitStack() as opened:
        caches = [opened.enter_context(FeatureCache.open(path)) for path in (cache, *others)]
        columns = choose_columns(caches, config.layers)
        return sum(one.cache.spec.layer(name).feature_dim for one in columns for name in one.layers)


def _describe_steps(run: Run) -> tuple[str, str]:
    """How many epochs were trained, or what a solver chose among the candidates that it tried."""
    done = run.training
    stopped = ", interrupted" if done.interrupted else ""
    if not run.config.architecture.solved:
        return "epochs", f"{done.epochs} (best: {done.best_epoch}){stopped}"
    tried = f", of {done.epochs:,} candidates" if done.epochs > 1 else ""
    return "chosen", f"{run.history()[done.best_epoch - 1].candidate}{tried}{stopped}"


def show_run(run: Run) -> None:
    """Print the scores of a run, and where it is."""
    done, features = run.training, run.features
    scores = [(split, score) for split, score in (("test", done.test), ("val", done.val)) if score is not None]
    rows = [(split, score_text(score), f"{score.loss:.4f}", f"{done.images[split]:,}") for split, score in scores]
    # What test says, or val where there is no test split, is the result.
    (split, result, *others), *rest = rows
    print_table([(split, Bold(result), *others), *rest], header=("", METRICS[done.val.metric], "loss", "images"))
    print_line()
    parameters = f", {human_count(done.trainable, 'parameter')} trained" if done.trainable else ""
    views = [("views", describe_views(features.views_description, run.config.train_views))] if _has_views(run) else []
    print_pairs(
        [
            ("head", f"{run.config.head}{parameters}"),
            _describe_steps(run),
            *views,
            ("took", f"{human_seconds(seconds_so_far())}, fit {human_seconds(done.seconds)}"),
            *(("cache", human_path(origin.cache)) for origin in features.origins),
            ("run", human_path(run.folder)),
        ]
    )


def _has_views(run: Run) -> bool:
    from featcache.cache.spec import Spec

    return any(Spec.from_json(origin.spec).views > 1 for origin in run.features.origins)


def show_next(run: Run, common: Common) -> None:
    """Print the command that resumes the training, or shows its report."""
    from featcache.training.checkpoint_file import CHECKPOINT_FILE

    if (run.folder / CHECKPOINT_FILE).is_file():
        print_next(common, "train-head", "--resume", run.folder.name)
    else:
        print_next(common, "report", run.folder.name)


def score_text(score: Score) -> str:
    """A score's value as text: an accuracy of 0.913 as "91.30 %", other metrics with four decimals, "0.9130"."""
    return f"{100 * score.value:.2f} %" if score.metric == "accuracy" else f"{score.value:.4f}"
