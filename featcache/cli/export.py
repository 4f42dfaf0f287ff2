"""`featcache export`: a run as one file from image to probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.predict import SECTION, weights_said
from featcache.cli.printing import print_json, print_pairs
from featcache.cli.terminal import Terminal
from featcache.errors import InvalidOption
from featcache.extraction.reporting import human_bytes

if TYPE_CHECKING:
    from featcache.inference import ExportedRun

_RUN = "Of a run"


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


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "export", section=SECTION)
    def export(
        run: Annotated[str, typer.Argument(help="Its path, its name in --runs-dir, how that begins, or latest.")],
        output: Annotated[
            Path,
            typer.Option("--output", "-o", help="The file to write.", metavar="<path>", rich_help_panel="The file"),
        ],
        format: Annotated[
            str | None,
            typer.Option(
                "--format",
                help="onnx or pt2 (torch.export). [default: what the file's name ends in]",
                metavar="<format>",
                rich_help_panel="The file",
            ),
        ] = None,
        *,
        options: RunExportOptions,
        common: Common,
    ) -> None:
        """Write a run as one file, from image to probabilities.

        Resize, normalisation, backbone and head are inside. The file is checked against featcache on real images
        before it takes its name; if it says anything else, nothing is written.
        """
        from featcache.inference import export_run

        with Terminal(quiet=common.quiet) as terminal:
            exported = export_run(
                run,
                output,
                _format(format, output),
                verify_images=options.verify_images,
                verify_limit=options.verify_limit,
                weights=weights_said(options.weights),
                data_dir=common.data_dir,
                runs_dir=common.runs_dir,
                reporter=terminal,
            )
        if common.json:
            print_json(exported.to_json())
        else:
            _show(exported)


def _format(said: str | None, output: Path) -> str:
    if said is not None:
        return said
    if not output.suffix:
        raise InvalidOption(f"{output} does not say its format", hint="--format onnx, for example")
    return output.suffix.removeprefix(".").lower()


def _show(exported: ExportedRun) -> None:
    print_pairs(
        [
            ("file", str(exported.path)),
            ("format", exported.format),
            ("size", human_bytes(exported.nbytes)),
            ("run", exported.run),
            ("input", "images: uint8 (N, H, W, 3), RGB, of any size"),
            ("output", f"probabilities: float32 (N, {len(exported.classes)}), in the order of the classes"),
            ("classes", ", ".join(exported.classes[:10]) + (", ..." if len(exported.classes) > 10 else "")),
            (
                "verified",
                f"on {exported.images} images: the same first class, probabilities within "
                f"{exported.greatest_difference:.1g} of featcache's",
            ),
        ]
    )
