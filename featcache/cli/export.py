"""`featcache export`: a run as one file from image to probabilities, or a cache's rows in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.groups import Only, names_of_given
from featcache.cli.options import Common
from featcache.cli.predict import SECTION
from featcache.cli.printing import (
    Bold,
    human_count,
    human_list,
    human_path,
    human_rows,
    print_json,
    print_line,
    print_next,
    print_pairs,
)
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage
from featcache.config import Option, check, options_of
from featcache.errors import InvalidOption, UnknownName
from featcache.extraction.execution import ComputeOptions
from featcache.inference.options import CacheExportOptions, MovedWeights, RunExportOptions
from featcache.text import human_bytes

if TYPE_CHECKING:
    from featcache.inference import ExportedCache, ExportedRun

_FILE = "The file"
RUN_FORMATS = ("onnx", "pt2")
CACHE_FORMATS = ("npz", "npy", "safetensors", "parquet", "csv", "projector")
_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What is written where."""

    output: Annotated[
        Path,
        Option(
            help="The file to write; for npy and projector a new folder.",
            flags=(
                "--output",
                "-o",
            ),
            metavar="<path>",
            panel=_FILE,
        ),
    ]
    format: Annotated[
        str | None,
        Option(
            help=f"Of a run: {', '.join(RUN_FORMATS)}. Of a cache: {', '.join(CACHE_FORMATS)}.",
            default="what the file's name ends in",
            metavar="<format>",
            panel=_FILE,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)


# The options that belong to one of the two kinds of export.
_OF_RUN = ("verify_images", "weights", "device", *(field.name for field in options_of(RunExportOptions)))
_OF_CACHE = tuple(field.name for field in options_of(CacheExportOptions))


def register(app: typer.Typer) -> None:
    """Add `export` to the typer app."""

    @command(
        app,
        "export",
        section=SECTION,
        examples=(
            "featcache export best --output model.onnx",
            "featcache export cifar10-vgg16 --output features.parquet",
        ),
    )
    def export(
        what: Annotated[
            str,
            typer.Argument(
                metavar="RUN_OR_CACHE",
                autocompletion=completion.runs_and_caches,
                help="A run or a cache: its path, its name, or how that begins; of runs also latest and best (as in "
                "featcache predict).",
            ),
        ],
        *,
        context: typer.Context,
        file: FileOptions,
        verify_images: Annotated[
            tuple[str, ...],
            Option(
                help="Images, a folder or an archive to check the file on; may be repeated.",
                default="those the run's cache was extracted from",
                metavar="<path>",
                panel=RunExportOptions.PANEL,
            ),
        ] = (),
        checks: RunExportOptions,
        weights: MovedWeights,
        how: Annotated[ComputeOptions, Only("device")],
        rows: CacheExportOptions,
        common: Common,
    ) -> None:
        """Write a run as one model file, or a cache's rows as a table.

        A run becomes one file from image to probabilities: resize, normalisation, backbone and head are inside. It is
        checked against featcache on real images before it takes its name; if it says anything else, nothing is
        written. Of a cache features, ids, labels, splits and class names are written.
        """
        from featcache.inference import export_cache, export_run

        format = _format(file)
        if format in RUN_FORMATS:
            _refuse(context, _OF_CACHE, "a run")
            _require_run(what, format, common)
            with Terminal(quiet=common.quiet) as terminal:
                run = export_run(
                    what,
                    file.output,
                    format,
                    verify_images=verify_images or None,
                    weights=weights.by_name,
                    device=how.device,
                    data_dir=common.data_dir,
                    runs_dir=common.runs_dir,
                    reporter=terminal,
                    **asdict(checks),
                )
            print_json(run.to_json()) if common.json else _show_run(run, common)
        else:
            _refuse(context, _OF_RUN, "a cache")
            path = _find_cache(what, format, common)
            with Terminal(quiet=common.quiet) as terminal:
                cache = export_cache(
                    path, file.output, format, data_dir=common.data_dir, reporter=terminal, **asdict(rows)
                )
            print_json(cache.to_json()) if common.json else _show_cache(cache, common)


def _format(file: FileOptions) -> str:
    known = (*RUN_FORMATS, *CACHE_FORMATS)
    name = file.output.suffix.removeprefix(".").lower() if file.format is None else file.format
    if not name:
        raise InvalidOption(f"{file.output} does not say its format", hint=f"--format, one of {', '.join(known)}")
    if name not in known:
        raise UnknownName("format", name, known)
    return name


def _refuse(context: typer.Context, names: Sequence[str], what: str) -> None:
    """A usage error where an option belongs to the other kind of export."""
    given = names_of_given(context, names)
    for parameter in context.command.params:
        if parameter.name in given:
            raise WrongUsage(f"{parameter.opts[0]} does not belong to the export of {what}")


def _require_run(name: str, format: str, common: Common) -> None:
    from featcache.cache.catalog import is_cache
    from featcache.runs.catalog import is_run

    if is_cache(common.features_dir, name) and not is_run(common.runs_dir, name):
        raise InvalidOption(
            f"{name} is a cache, and {format} is a format of runs",
            hint=f"formats of a cache: {', '.join(CACHE_FORMATS)}; `featcache train-head` makes a run of it",
        )


def _find_cache(name: str, format: str, common: Common) -> Path:
    from featcache.cache.catalog import find, is_cache
    from featcache.runs.catalog import is_run

    if is_run(common.runs_dir, name) and not is_cache(common.features_dir, name):
        raise InvalidOption(
            f"{name} is a run, and {format} is a format of caches",
            hint=f"formats of a run: {', '.join(RUN_FORMATS)}; for the rows it was trained on name its cache, which "
            "`featcache ls` lists",
        )
    return find(common.features_dir, name).require_complete()


def _show_run(exported: ExportedRun, common: Common) -> None:
    names, numbers = exported.target.names, exported.target.kind == "numbers"
    what, columns = ("values", "columns") if numbers else ("probabilities", "classes")
    same = "the same predicted class, " if exported.target.kind == "classes" else ""
    images = human_count(exported.images, "image")
    print_line(Bold(human_bytes(exported.nbytes)), f" in {human_path(exported.path)} ({exported.format})")
    print_pairs(
        [
            ("run", human_path(exported.run)),
            ("input", "images: uint8 (N, H, W, 3), RGB, of any size"),
            ("output", f"{what}: float32 (N, {len(names)}), in the order of the {columns}"),
            (columns, human_list(names, _MOST_NAMED)),
            ("verified", f"on {images}: {same}{what} within {exported.greatest_difference:.1g} of featcache's"),
        ]
    )
    print_next(common, "report", human_path(exported.run))


def _show_cache(exported: ExportedCache, common: Common) -> None:
    print_line(Bold(human_bytes(exported.nbytes)), f" in {human_path(exported.path)} ({exported.format})")
    print_pairs(
        [
            ("cache", exported.cache),
            ("rows", human_rows(exported.rows)),
            ("features", ", ".join(f"{dim:,} ({layer})" for layer, dim in exported.feature_dim.items())),
            *([("views", f"{exported.views} of each train image")] if exported.views > 1 else []),
        ]
    )
    print_next(common, "info", exported.cache)
