"""`featcache train-head`: a cache in, a trained and tested head out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli.options import (
    BackboneOptions,
    Common,
    ImageOptions,
    backbone_defaults,
    command,
    image_defaults,
)
from featcache.cli.terminal import Terminal, human_seconds, print_json, print_table

if TYPE_CHECKING:
    from featcache.extraction.matching import Found
    from featcache.heads import EpochRecord, Run

_HEAD = "The head"


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What is trained, and how."""

    head: Annotated[str, typer.Option(help="linear, or mlp: with hidden sizes.", rich_help_panel=_HEAD)] = "mlp:128,64"
    activation: Annotated[str, typer.Option(help="relu, leaky_relu, gelu, silu, tanh, ...", rich_help_panel=_HEAD)] = (
        "relu"
    )
    dropout: Annotated[float, typer.Option(help="After each hidden layer.", rich_help_panel=_HEAD)] = 0.0
    lr: Annotated[float, typer.Option(help="Adam's learning rate.", rich_help_panel=_HEAD)] = 1e-3
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.", rich_help_panel=_HEAD)] = 0.0
    l1: Annotated[float, typer.Option(help="L1 penalty over all weights and biases.", rich_help_panel=_HEAD)] = 0.0
    head_batch_size: Annotated[int, typer.Option(help="Rows per step.", rich_help_panel=_HEAD)] = 64
    max_epochs: Annotated[int, typer.Option(help="At most so many epochs.", rich_help_panel=_HEAD)] = 50
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a lower val loss.", rich_help_panel=_HEAD)
    ] = 5
    min_delta: Annotated[float, typer.Option(help="What counts as lower.", rich_help_panel=_HEAD)] = 0.001
    val_fraction: Annotated[
        float, typer.Option(help="Of train, where the set has no val split.", rich_help_panel=_HEAD)
    ] = 0.2
    val_seed: Annotated[int, typer.Option(help="Which images that takes.", rich_help_panel=_HEAD)] = 42
    seed: Annotated[int, typer.Option(help="Initial weights and order.", rich_help_panel=_HEAD)] = 0
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_HEAD)] = "auto"


def register(app: typer.Typer) -> None:
    @command(app, "train-head")
    def train_head(
        cache: Annotated[str | None, typer.Argument(help="A cache's path, or its name from `featcache ls`.")] = None,
        *,
        head: HeadOptions,
        what: BackboneOptions,
        images: ImageOptions,
        common: Common,
    ) -> None:
        """Train a head on cached features, in seconds.

        Say which cache by its name, or by the options it was extracted with. Val decides which epoch is kept;
        test is looked at once, at the end.
        """
        from dataclasses import asdict

        from featcache.heads import train_head

        found = find(cache, what, images, common)
        layers = what.layer or found.layers
        with Terminal(quiet=common.quiet) as terminal:

            def progress(epoch: EpochRecord) -> None:
                terminal.advance("training", epoch.epoch, epoch.max_epochs)

            run = train_head(
                found.path,
                **asdict(head),
                layer=layers,
                runs_dir=common.runs_dir,
                progress=progress,
                report=terminal.say,
            )
        if common.json:
            print_json(run.to_json())
        else:
            _show(run)


def find(cache: str | None, what: BackboneOptions, images: ImageOptions, common: Common) -> Found:
    """The cache that is meant: by name, by options, or the only one there is. Raises CacheNotFound."""
    from featcache.extraction import matching
    from featcache.extraction.request import Request

    features_dir = common.data_dir / "features"
    said_nothing = what == BackboneOptions() and images == ImageOptions()
    if cache is not None:
        return matching.by_name(features_dir, cache)
    request = Request(**backbone_defaults(what), **image_defaults(images), data_dir=common.data_dir)
    only = matching.only_cache(features_dir) if said_nothing else None
    return only or matching.by_request(request)


def _show(run: Run) -> None:
    result = run.to_json()
    rows = [
        (split, f"{100 * score['accuracy']:.2f} %", f"{score['loss']:.4f}", str(result["n"][split]))
        for split, score in (("val", result["val"]), ("test", result["test"]))
        if score is not None
    ]
    stopped = ", interrupted" if result.get("interrupted") else ""
    print_table(rows, header=("", "accuracy", "loss", "images"))
    print()
    print_table(
        [
            ("head", f"{result['head']}, {result['parameters']['trainable']:,} parameters trained"),
            ("epochs", f"{result['epochs']} (best: {result['best_epoch']}){stopped}"),
            ("took", human_seconds(result["seconds"])),
            ("cache", result["cache"]),
            ("run", result["run"]),
        ]
    )
