"""`featcache train-head`: a cache in, a trained and tested head out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli import completion
from featcache.cli.clock import seconds_so_far
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.groups import Given, given_options
from featcache.cli.options import Common, requested
from featcache.cli.printing import human_seconds, print_json, print_line, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.config import options_of
from featcache.extraction.request import Request, StorageOptions
from featcache.heads.config import HeadConfig
from featcache.images.options import ImageOptions
from featcache.rows.views import seen_views
from featcache.training.options import TrainingOptions

if TYPE_CHECKING:
    from featcache.extraction.named import Found
    from featcache.heads.records import EpochRecord, Score
    from featcache.notebook.recipes import Recipe
    from featcache.runs.run import Run

_CACHE = "On which cache"
_RUN = "The run"
#: In words: what a score's value is.
METRICS = {"accuracy": "accuracy", "map": "mAP", "r2": "R2"}


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "train-head", section="From images to a head")
    def train_head(
        cache: Annotated[
            str | None,
            typer.Argument(
                autocompletion=completion.caches,
                help="Its path, its name from `featcache ls`, or how that begins.",
                rich_help_panel=_CACHE,
            ),
        ] = None,
        recipe: Annotated[
            str | None,
            typer.Option(
                autocompletion=completion.recipes,
                help="The settings of one of `featcache recipes`, but for the options that are given.",
                metavar="<name>",
                rich_help_panel=_RUN,
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
            bool,
            typer.Option(
                "--concat",
                help="Read all layers, side by side. With --layer those; backbone/layer is that of one cache only.",
                rich_help_panel=_CACHE,
            ),
        ] = False,
        resume: Annotated[
            str | None,
            typer.Option(
                help="Go on with a training that was killed or interrupted: last, or its folder in --runs-dir. "
                "All other options are as they were then.",
                metavar="<run>",
                rich_help_panel=_RUN,
            ),
        ] = None,
        *,
        context: typer.Context,
        head: Annotated[dict[str, Any], Given(HeadConfig, without=("layers",))],
        how: Annotated[dict[str, Any], Given(TrainingOptions)],
        what: BackboneOptions,
        storage: StorageOptions,
        images: ImageOptions,
        common: Common,
    ) -> None:
        """Train a head on cached features, in seconds.

        Say which cache by its name, or by the options it was extracted with; with neither, the only one there is.
        Val decides which epoch is kept; test is looked at once, at the end.
        """
        with Terminal(quiet=common.quiet) as terminal:

            def progress(epoch: EpochRecord) -> None:
                terminal.advance("training", epoch.epoch, epoch.max_epochs)

            running: dict[str, Any] = {"progress": progress, "report": terminal.say, "runs_dir": common.runs_dir}
            if resume is not None:
                run = _resumed(resume, context, how, running)
            else:
                known = None if recipe is None else _recipe(recipe)
                wanted = Wanted.of(context, what, storage, images, common)
                found = find(cache, wanted, known)
                others = others_of(wanted, beside or ())
                layers = wanted.request.layers or (every_layer([found.path, *others]) if concat else found.layers)
                config = HeadConfig.of({**head, "layers": layers or None}, None if known is None else known.head)
                if known is not None and (doubt := known.width_doubt(_width(found.path, others, config))):
                    terminal.warn(doubt)
                TrainingOptions(**how).require_steps(config)
                run = _trained(found.path, others, config, running | how)
        if common.json:
            print_json(run.to_json())
        else:
            _show(run)
        if run.training.interrupted:
            raise typer.Exit(INTERRUPTED)


def _trained(cache: Path, beside: Sequence[Path], config: HeadConfig, options: dict[str, Any]) -> Run:
    from featcache.runs.fit import fit_head

    return fit_head(cache, config, beside=beside, **options)


def _resumed(run: str, context: typer.Context, how: dict[str, Any], running: dict[str, Any]) -> Run:
    from featcache.runs.resuming import resume_head

    refuse_settled(context)
    return resume_head(run, **running, **how)


def refuse_settled(context: typer.Context) -> None:
    """Raises a usage error where an option stands beside --resume that was settled when the training began."""
    free = {"resume", "resident_bytes", *(field.name for field in fields(Common))}
    settled = given_options(context, context.params) - free
    if settled:
        written = [parameter.opts[0] for parameter in context.command.params if parameter.name in settled]
        raise typer.BadParameter(
            f"all other options are as they were at first: leave out {', '.join(written)}", param_hint="--resume"
        )


def others_of(wanted: Wanted, names: Sequence[str]) -> list[Path]:
    """The caches that `--with` names. Raises CacheError."""
    from featcache.extraction.named import by_name

    return [by_name(wanted.request.features_dir, name).path for name in names]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which cache the options describe, and which of them stand on the command line."""

    request: Request
    said: frozenset[str]

    @classmethod
    def of(
        cls,
        context: typer.Context,
        what: BackboneOptions,
        storage: StorageOptions,
        images: ImageOptions,
        common: Common,
    ) -> Wanted:
        """From the groups of a command."""
        names = [field.name for field in options_of(Request)]
        return cls(request=requested(what, storage, images, common), said=frozenset(given_options(context, names)))

    def completed(self, recipe: Recipe) -> Request:
        """The request with a recipe's backbone and size where nothing else is said. Raises InvalidOption."""
        if "backbone" in self.said:
            recipe.require_backbone(self.request.backbone_name)
        size = recipe.input.image_size if self.request.image_size is None else self.request.image_size
        return replace(self.request, backbone=recipe.backbone, image_size=size)


def find(cache: str | None, wanted: Wanted, recipe: Recipe | None = None) -> Found:
    """The cache that is meant: by name, by options, or the only one there is.

    A recipe says backbone and size where nothing else does. Raises CacheError, or InvalidOption for a cache that
    contradicts the recipe.
    """
    from featcache.extraction.named import by_name, only_cache

    shelf = wanted.request.features_dir
    # A layer may be chosen from any cache.
    said_nothing = not wanted.said - {"layers"}
    if cache is not None:
        if not said_nothing:
            raise typer.BadParameter("say which cache by its name or by options, not both", param_hint="cache")
        found = by_name(shelf, cache)
        if recipe is not None:
            recipe.require_backbone(_backbone_of(found))
        return found
    backbone = None if recipe is None else recipe.backbone
    only = only_cache(shelf, backbone) if said_nothing else None
    if only is not None:
        return only
    # What a backbone's options mean takes longer to import than most commands take.
    from featcache.extraction.matching import by_request

    return by_request(wanted.request if recipe is None else wanted.completed(recipe))


def _recipe(name: str) -> Recipe:
    from featcache.notebook.recipes import recipe

    return recipe(name)


def _width(cache: Path, beside: Sequence[Path], config: HeadConfig) -> int:
    """How many features a row has, of all layers that are read."""
    from featcache.cache.reader import FeatureCache
    from featcache.rows.joining import choose_columns

    with ExitStack() as opened:
        caches = [opened.enter_context(FeatureCache.open(path)) for path in (cache, *beside)]
        columns = choose_columns(caches, config.layers)
        return sum(one.cache.spec.layer(name).feature_dim for one in columns for name in one.layers)


def _backbone_of(found: Found) -> str:
    from featcache.cache.reader import FeatureCache

    with FeatureCache.open(found.path) as cache:
        return cache.spec.backbone


def every_layer(paths: Sequence[Path]) -> list[str]:
    """The names of all layers that these caches hold."""
    from featcache.cache.reader import FeatureCache

    names: dict[str, None] = {}
    for path in paths:
        with FeatureCache.open(path) as cache:
            names |= dict.fromkeys(cache.layers)
    return list(names)


def _way(run: Run) -> tuple[str, str]:
    # How many epochs there were, or what a solver tried.
    done = run.training
    stopped = ", interrupted" if done.interrupted else ""
    if not run.config.architecture.solved:
        return "epochs", f"{done.epochs} (best: {done.best_epoch}){stopped}"
    return "chosen", f"{run.history()[done.best_epoch - 1].candidate}, of {done.epochs} tried{stopped}"


def _show(run: Run) -> None:
    result, done = run.to_json(), run.training
    scores = [(split, score) for split, score in (("val", done.val), ("test", done.test)) if score is not None]
    rows = [(split, score_text(score), f"{score.loss:.4f}", str(done.images[split])) for split, score in scores]
    print_table(rows, header=("", METRICS[done.val.metric], "loss", "images"))
    print_line()
    print_pairs(
        [
            ("head", f"{result['head']}, {result['parameters']['trainable']:,} parameters trained"),
            _way(run),
            ("views", seen_views(run.features.views_told, run.config.train_views)),
            ("took", f"{human_seconds(seconds_so_far())}, fit {human_seconds(done.seconds)}"),
            *(("cache", cache) for cache in (result["cache"], *result["beside"])),
            ("run", result["run"]),
        ]
    )


def score_text(score: Score) -> str:
    """A score's value for people: accuracies in per cent, other metrics as they are."""
    return f"{100 * score.value:.2f} %" if score.metric == "accuracy" else f"{score.value:.4f}"
