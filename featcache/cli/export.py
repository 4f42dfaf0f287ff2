"""`featcache export`: a run as one file from image to outputs, or for training; a cache's rows in another format."""

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
from featcache.inference.options import (
    CACHE_FORMATS,
    RUN_FORMATS,
    CacheExportOptions,
    MovedWeights,
    RunExportOptions,
)
from featcache.text import human_bytes

if TYPE_CHECKING:
    from featcache.inference import ExportedCache, ExportedRun
    from featcache.runs.run import Run

_FILE = "The file"
_MOST_NAMED = 10
_INPUTS = {"torch": "images: uint8 (N, 3, S, S), or floats from 0 to 1, resized by `model.transform`"}


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What is written where."""

    output: Annotated[
        Path,
        Option(
            help="The file; for torch, npy and projector a new folder.",
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

        A run becomes one file from image to outputs: resize, normalisation, backbone and head are inside. With torch it
        becomes a module to train further. It is checked against featcache on real images before it takes its name; if
        it predicts anything else, nothing is written. Of a cache features, ids, labels, splits and class names are
        written. With atlas, a run is its caches with its predictions.
        """
        from featcache.inference import export_cache, export_run

        format = _format(file)
        is_run = format in RUN_FORMATS and (format not in CACHE_FORMATS or _names_run(what, common))
        if is_run and format not in CACHE_FORMATS:
            _refuse(context, _OF_CACHE, f"a run as {format}")
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
            _refuse(context, _OF_RUN, f"{'a run' if is_run else 'a cache'} as {format}")
            with Terminal(quiet=common.quiet) as terminal:
                exported = _load_run(what, common, terminal) if is_run else _find_cache(what, format, common)
                cache = export_cache(
                    exported, file.output, format, data_dir=common.data_dir, reporter=terminal, **asdict(rows)
                )
            print_json(cache.to_json()) if common.json else _show_cache(cache, common)


def _names_run(name: str, common: Common) -> bool:
    from featcache.runs.catalog import is_run

    return is_run(common.runs_dir, name)


def _load_run(name: str, common: Common, terminal: Terminal) -> Run:
    from featcache.inference.prediction import open_run

    return open_run(name, common.runs_dir, terminal)[0]


def _format(file: FileOptions) -> str:
    known = tuple(dict.fromkeys((*RUN_FORMATS, *CACHE_FORMATS)))
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
    # What is trained further gives logits.
    outputs = "logits" if exported.format == "torch" and not numbers else what
    # `ExportedRun.greatest_difference` is so, because numbers may have any size.
    relative = ", relative to the largest number of their column" if numbers else ""
    same = "the same predicted class, " if exported.target.kind == "classes" else ""
    images = human_count(exported.images, "image")
    print_line(Bold(human_bytes(exported.nbytes)), f" in {human_path(exported.path)} ({exported.format})")
    print_pairs(
        [
            ("run", human_path(exported.run)),
            ("input", _INPUTS.get(exported.format, "images: uint8 (N, H, W, 3), RGB, of any size")),
            ("output", f"{outputs}: float32 (N, {len(names)}), in the order of the {columns}"),
            (columns, human_list(names, _MOST_NAMED)),
            (
                "verified",
                f"on {images}: {same}{what} within {exported.greatest_difference:.1g} of featcache's{relative}",
            ),
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
            *([("map", f"x and y by {exported.map}")] if exported.map else []),
            *([("run", human_path(exported.run))] if exported.run else []),
        ]
    )
    print_next(common, "info", exported.cache)
