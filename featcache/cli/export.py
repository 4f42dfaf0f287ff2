"""`featcache export`: a run as one file from image to probabilities, or a cache's rows in another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.predict import SECTION, weights_said
from featcache.cli.printing import human_rows, print_json, print_pairs
from featcache.cli.terminal import Terminal
from featcache.errors import InvalidOption, UnknownName
from featcache.extraction.reporting import human_bytes

if TYPE_CHECKING:
    from featcache.inference import ExportedCache, ExportedRun

_FILE = "The file"
_RUN = "Of a run"
_CACHE = "Of a cache"
RUN_FORMATS = ("onnx", "pt2")
CACHE_FORMATS = ("npz", "npy", "safetensors", "parquet", "csv", "projector")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What is written where."""

    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The file to write; for npy and projector a new folder.",
            metavar="<path>",
            rich_help_panel=_FILE,
        ),
    ]
    format: Annotated[
        str | None,
        typer.Option(
            help=f"Of a run: {', '.join(RUN_FORMATS)}. Of a cache: {', '.join(CACHE_FORMATS)}. "
            "[default: what the file's name ends in]",
            metavar="<format>",
            rich_help_panel=_FILE,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunExportOptions:
    """How a run's file is checked, and where its weights are."""

    verify_images: Annotated[
        list[str] | None,
        typer.Option(
            help="Images, a folder or an archive to check the file on; may be repeated. "
            "[default: those the run's cache was extracted from]",
            metavar="<path>",
            rich_help_panel=_RUN,
        ),
    ] = None
    verify_limit: Annotated[
        int, typer.Option(help="On so many of them.", metavar="<images>", min=1, rich_help_panel=_RUN)
    ] = 32
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the backbone's weights are now; of several: BACKBONE=SOURCE, repeated. "
            "[default: where they were when the head was trained]",
            metavar="<source>",
            rich_help_panel=_RUN,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CacheExportOptions:
    """Which rows of a cache."""

    split: Annotated[
        list[str] | None,
        typer.Option(
            help="train, val or test; may be repeated. [default: all]", metavar="<split>", rich_help_panel=_CACHE
        ),
    ] = None
    layer: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated. [default: all]", metavar="<name>", rich_help_panel=_CACHE),
    ] = None
    sprite: Annotated[
        bool,
        typer.Option("--sprite", help="For the projector: every image as its point.", rich_help_panel=_CACHE),
    ] = False


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "export", section=SECTION)
    def export(
        what: Annotated[
            str,
            typer.Argument(
                autocompletion=completion.runs_and_caches,
                help="A run or a cache: its path, its name, or how that begins; of runs also latest and best.",
            ),
        ],
        *,
        file: FileOptions,
        run_options: RunExportOptions,
        cache_options: CacheExportOptions,
        common: Common,
    ) -> None:
        """Write a run, or a cache's rows, as a file for others.

        A run becomes one file from image to probabilities: resize, normalisation, backbone and head are inside. It is
        checked against featcache on real images before it takes its name; if it says anything else, nothing is
        written. Of a cache features, ids, labels, splits and class names are written.
        """
        format = _format(file)
        if format in RUN_FORMATS:
            _refuse(cache_options, CacheExportOptions(), "a run")
            run = _export_run(what, file.output, format, run_options, common)
            print_json(run.to_json()) if common.json else _show_run(run)
        else:
            _refuse(run_options, RunExportOptions(), "a cache")
            cache = _export_cache(what, file.output, format, cache_options, common)
            print_json(cache.to_json()) if common.json else _show_cache(cache)


def _format(file: FileOptions) -> str:
    known = (*RUN_FORMATS, *CACHE_FORMATS)
    said = file.output.suffix.removeprefix(".").lower() if file.format is None else file.format
    if not said:
        raise InvalidOption(f"{file.output} does not say its format", hint=f"--format, one of {', '.join(known)}")
    if said not in known:
        raise UnknownName("format", said, known)
    return said


def _refuse(said: object, nothing: object, what: str) -> None:
    """A usage error where an option belongs to the other kind of export."""
    for name, value in vars(said).items():
        if value != getattr(nothing, name):
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"does not belong to the export of {what}", param_hint=option)


def _export_run(run: str, output: Path, format: str, options: RunExportOptions, common: Common) -> ExportedRun:
    from featcache.inference import export_run

    with Terminal(quiet=common.quiet) as terminal:
        return export_run(
            run,
            output,
            format,
            verify_images=options.verify_images,
            verify_limit=options.verify_limit,
            weights=weights_said(options.weights),
            data_dir=common.data_dir,
            runs_dir=common.runs_dir,
            reporter=terminal,
        )


def _export_cache(cache: str, output: Path, format: str, options: CacheExportOptions, common: Common) -> ExportedCache:
    from featcache.cache.catalog import find
    from featcache.inference import export_cache

    with Terminal(quiet=common.quiet) as terminal:
        return export_cache(
            find(common.features_dir, cache).require_complete(),
            output,
            format,
            splits=options.split,
            layers=options.layer,
            sprite=options.sprite,
            data_dir=common.data_dir,
            reporter=terminal,
        )


def _show_run(exported: ExportedRun) -> None:
    names, numbers = exported.target.names, exported.target.kind == "numbers"
    what, columns = ("values", "columns") if numbers else ("probabilities", "classes")
    same = "the same first class, " if exported.target.kind == "classes" else ""
    print_pairs(
        [
            ("file", str(exported.path)),
            ("format", exported.format),
            ("size", human_bytes(exported.nbytes)),
            ("run", exported.run),
            ("input", "images: uint8 (N, H, W, 3), RGB, of any size"),
            ("output", f"{what}: float32 (N, {len(names)}), in the order of the {columns}"),
            (columns, ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")),
            (
                "verified",
                f"on {exported.images} images: {same}{what} within {exported.greatest_difference:.1g} of featcache's",
            ),
        ]
    )


def _show_cache(exported: ExportedCache) -> None:
    print_pairs(
        [
            ("written", str(exported.path)),
            ("format", exported.format),
            ("size", human_bytes(exported.nbytes)),
            ("cache", exported.cache),
            ("rows", human_rows(exported.rows)),
            ("features", ", ".join(f"{dim:,} of {layer}" for layer, dim in exported.feature_dim.items())),
            *([("views", f"{exported.views} of each train image")] if exported.views > 1 else []),
        ]
    )
