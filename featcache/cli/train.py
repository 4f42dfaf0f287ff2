"""`featcache train-head`: a cache in, a trained and tested head out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.backbones.options import BackboneOptions
from featcache.cli import completion
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.options import Common, FeatureMemory, in_bytes, number_or_auto, requested
from featcache.cli.printing import human_seconds, print_json, print_line, print_pairs, print_table
from featcache.cli.terminal import Terminal
from featcache.config import options_of
from featcache.extraction.request import Request, StorageOptions
from featcache.images.options import ImageOptions
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, seen_views

if TYPE_CHECKING:
    from featcache.extraction.matching import Found
    from featcache.heads.records import EpochRecord
    from featcache.notebook.recipes import Recipe
    from featcache.runs.run import Run

_HEAD = "The head"
_CACHE = "On which cache"
_RUN = "The run"


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What is trained, and how."""

    head: Annotated[
        str,
        typer.Option(
            autocompletion=completion.heads,
            help="linear, mlp: and the hidden sizes, or solved at once: logreg, ridge, centroid, knn.",
            metavar="<head>",
            rich_help_panel=_HEAD,
        ),
    ] = "mlp:128,64"
    activation: Annotated[
        str,
        typer.Option(
            help="Between the layers: relu, leaky_relu, gelu, tanh, ...", metavar="<name>", rich_help_panel=_HEAD
        ),
    ] = "relu"
    dropout: Annotated[
        float, typer.Option(help="After each hidden layer.", metavar="<share>", rich_help_panel=_HEAD)
    ] = 0.0
    batch_norm: Annotated[
        bool,
        typer.Option(
            "--batch-norm", help="Normalise each hidden layer; folded into the stored head.", rich_help_panel=_HEAD
        ),
    ] = False
    mixup: Annotated[
        float,
        typer.Option(
            help="Train on mixtures of two images' features, the share from Beta(alpha, alpha).",
            metavar="<alpha>",
            rich_help_panel=_HEAD,
        ),
    ] = 0.0
    noise: Annotated[
        float,
        typer.Option(
            help="Train on features with Gaussian noise, after standardising.",
            metavar="<sigma>",
            rich_help_panel=_HEAD,
        ),
    ] = 0.0
    lr: Annotated[float, typer.Option(help="Learning rate.", metavar="<rate>", rich_help_panel=_HEAD)] = 1e-3
    weight_decay: Annotated[
        float, typer.Option(help="The optimizer's weight decay.", metavar="<factor>", rich_help_panel=_HEAD)
    ] = 0.0
    l1: Annotated[
        float,
        typer.Option(help="L1 penalty on all weights and biases.", metavar="<factor>", rich_help_panel=_HEAD),
    ] = 0.0
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.", metavar="<name>", rich_help_panel=_HEAD)] = (
        "adam"
    )
    momentum: Annotated[float, typer.Option(help="Of sgd.", metavar="<share>", rich_help_panel=_HEAD)] = 0.9
    schedule: Annotated[
        str,
        typer.Option(
            help="constant; cosine: the rate falls to 0 over --max-epochs; plateau: to a tenth where val loss stays.",
            metavar="<name>",
            rich_help_panel=_HEAD,
        ),
    ] = "constant"
    label_smoothing: Annotated[
        float,
        typer.Option(help="Share of a label spread over all classes.", metavar="<share>", rich_help_panel=_HEAD),
    ] = 0.0
    class_weights: Annotated[
        str,
        typer.Option(
            help="none, or balanced: rare classes count as much as others.", metavar="<name>", rich_help_panel=_HEAD
        ),
    ] = "none"
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize/--no-standardize",
            help="Train on features of mean 0 and deviation 1; the stored head needs neither.",
            rich_help_panel=_HEAD,
        ),
    ] = True
    train_views: Annotated[
        str | None,
        typer.Option(
            help="Of a cache with --views: all, every view of every train image in an epoch, or draw, one of them for "
            f"each image, drawn anew in every epoch. [default: {DEFAULT_TRAIN_VIEWS}]",
            metavar="<which>",
            rich_help_panel=_HEAD,
        ),
    ] = None
    head_batch_size: Annotated[int, typer.Option(help="Rows per step.", metavar="<rows>", rich_help_panel=_HEAD)] = 64
    max_epochs: Annotated[
        int, typer.Option(help="At most so many epochs.", metavar="<epochs>", rich_help_panel=_HEAD)
    ] = 50
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after so many epochs without a lower val loss.", metavar="<epochs>", rich_help_panel=_HEAD
        ),
    ] = 5
    min_delta: Annotated[
        float,
        typer.Option(help="How much lower a val loss must be to count.", metavar="<loss>", rich_help_panel=_HEAD),
    ] = 0.001
    val_fraction: Annotated[
        float,
        typer.Option(help="Share of train, unless the set has a val split.", metavar="<share>", rich_help_panel=_HEAD),
    ] = 0.2
    val_seed: Annotated[
        int, typer.Option(help="Which images --val-fraction takes.", metavar="<seed>", rich_help_panel=_HEAD)
    ] = 42
    seed: Annotated[
        int, typer.Option(help="Initial weights and order of the rows.", metavar="<seed>", rich_help_panel=_HEAD)
    ] = 0
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>", rich_help_panel=_HEAD)
    ] = "auto"


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
                help="The settings of one of `featcache recipes`, but for what is said beside it.",
                metavar="<name>",
                rich_help_panel=_HEAD,
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
                "Everything else is as it was said then.",
                metavar="<run>",
                rich_help_panel=_RUN,
            ),
        ] = None,
        threads: Annotated[
            str,
            typer.Option(
                help="For a head that is trained by steps on the CPU. auto tries whether one is faster than all.",
                metavar="<n>",
                rich_help_panel=_RUN,
            ),
        ] = "auto",
        feature_memory: FeatureMemory = None,
        tensorboard: Annotated[
            bool,
            typer.Option("--tensorboard", help="Also write what TensorBoard shows.", rich_help_panel=_RUN),
        ] = False,
        *,
        context: typer.Context,
        head: HeadOptions,
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

            running: dict[str, Any] = {
                "progress": progress,
                "report": terminal.say,
                "resident_bytes": in_bytes(feature_memory),
            }
            if resume is not None:
                run = _resumed(resume, context, common, running)
            else:
                known = None if recipe is None else _recipe(recipe)
                wanted = Wanted.of(context, what, storage, images, common)
                options = _chosen(cache, beside or (), known, context, head, wanted, concat=concat)
                if known is not None and (doubt := known.width_doubt(_width(options))):
                    terminal.warn(doubt)
                settings = {"threads": number_or_auto(threads, "--threads"), "tensorboard": tensorboard}
                run = _trained(options | settings, common, running)
        if common.json:
            print_json(run.to_json())
        else:
            _show(run)
        if run.training.interrupted:
            raise typer.Exit(INTERRUPTED)


def _trained(options: dict[str, Any], common: Common, running: dict[str, Any]) -> Run:
    from featcache.runs.fit import train_head

    return train_head(**options, **running, runs_dir=common.runs_dir)


def _resumed(run: str, context: typer.Context, common: Common, running: dict[str, Any]) -> Run:
    """Goes on with a training; a usage error where anything is said that was settled when it began."""
    from featcache.runs.resuming import resume_head

    said = _said(context, context.params) - {"resume", "feature_memory", *(field.name for field in fields(Common))}
    if said:
        written = [parameter.opts[0] for parameter in context.command.params if parameter.name in said]
        raise typer.BadParameter(
            f"everything is as it was said at first: leave out {', '.join(written)}", param_hint="--resume"
        )
    return resume_head(run, runs_dir=common.runs_dir, **running)


def _chosen(
    cache: str | None,
    beside: Sequence[str],
    recipe: Recipe | None,
    context: typer.Context,
    head: HeadOptions,
    wanted: Wanted,
    *,
    concat: bool,
) -> dict[str, Any]:
    """What is trained on what, as `featcache.train_head` takes it."""
    from featcache.extraction import matching

    found = find(cache, wanted, recipe)
    others = [matching.by_name(wanted.request.features_dir, name).path for name in beside]
    layers = wanted.request.layers or (every_layer([found.path, *others]) if concat else found.layers)
    settings = asdict(head) | ({} if recipe is None else _left_to(recipe, context))
    return {"cache": found.path, "beside": others, "layer": layers, **settings}


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
        return cls(request=requested(what, storage, images, common), said=frozenset(_said(context, names)))

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
    from featcache.extraction import matching

    shelf = wanted.request.features_dir
    # A layer may be chosen from any cache.
    said_nothing = not wanted.said - {"layers"}
    if cache is not None:
        if not said_nothing:
            raise typer.BadParameter("say which cache by its name or by options, not both", param_hint="cache")
        found = matching.by_name(shelf, cache)
        if recipe is not None:
            recipe.require_backbone(_backbone_of(found))
        return found
    backbone = None if recipe is None else recipe.backbone
    only = matching.only_cache(shelf, backbone) if said_nothing else None
    return only or matching.by_request(wanted.request if recipe is None else wanted.completed(recipe))


def _recipe(name: str) -> Recipe:
    from featcache.notebook.recipes import recipe

    return recipe(name)


def _width(options: Mapping[str, Any]) -> int:
    """D of the features that a head with these options is trained on."""
    from featcache.cache.reader import FeatureCache
    from featcache.rows.joining import choose_columns

    with ExitStack() as opened:
        caches = [opened.enter_context(FeatureCache.open(path)) for path in (options["cache"], *options["beside"])]
        layers = None if options["layer"] is None else tuple(options["layer"])
        columns = choose_columns(caches, layers)
        return sum(one.cache.spec.layer(name).feature_dim for one in columns for name in one.layers)


def _left_to(recipe: Recipe, context: typer.Context) -> dict[str, Any]:
    """The recipe's settings, without those that were said on the command line."""
    said = _said(context, recipe.head_options())
    return {name: value for name, value in recipe.head_options().items() if name not in said}


def _said(context: typer.Context, names: Iterable[str]) -> set[str]:
    """Which of these parameters were said on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


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
    result = run.to_json()
    rows = [
        (split, f"{100 * score['accuracy']:.2f} %", f"{score['loss']:.4f}", str(result["n"][split]))
        for split, score in (("val", result["val"]), ("test", result["test"]))
        if score is not None
    ]
    print_table(rows, header=("", "accuracy", "loss", "images"))
    print_line()
    print_pairs(
        [
            ("head", f"{result['head']}, {result['parameters']['trainable']:,} parameters trained"),
            _way(run),
            ("views", seen_views(run.features.views_told, run.config.train_views)),
            ("took", human_seconds(result["seconds"])),
            *(("cache", cache) for cache in (result["cache"], *result["beside"])),
            ("run", result["run"]),
        ]
    )
