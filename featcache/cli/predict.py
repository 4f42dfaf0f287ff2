"""`featcache predict`: classifies images with a trained head."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.printing import Bold, print_csv, print_json, print_table
from featcache.cli.terminal import Terminal
from featcache.cli.usage import WrongUsage
from featcache.columns import SEPARATOR
from featcache.config import Option, merge_fields
from featcache.extraction.execution import ComputeOptions
from featcache.inference.options import MovedWeights, PredictOptions

if TYPE_CHECKING:
    from featcache.inference import ImagePrediction, NearImage, Predicted

SECTION = "Using a head"
RUN = typer.Argument(
    metavar="RUN",
    autocompletion=completion.runs,
    help="Its path, its name in --runs-dir, or how that begins; or latest, or best. latest: the newest run, also "
    "one that a sweep chose. best: the highest score on val among the runs with latest's target and val images.",
)


def register(app: typer.Typer) -> None:
    """Add `predict` to the typer app."""

    @command(
        app,
        "predict",
        section=SECTION,
        examples=(
            "featcache predict latest photos/new/",
            "featcache predict best cat.jpg --top 5 --json",
        ),
    )
    def predict(
        run: Annotated[str, RUN],
        images: Annotated[
            list[str],
            typer.Argument(
                metavar="IMAGES",
                help="Images, folders or archives of images; - reads stdin: an image, or paths, one a line.",
            ),
        ],
        *,
        shown: PredictOptions,
        as_csv: Annotated[
            bool, Option(help="Print comma-separated values.", flags=("--csv",), panel=PredictOptions.PANEL)
        ] = False,
        weights: MovedWeights,
        how: ComputeOptions,
        common: Common,
    ) -> None:
        """Say what images show, by a trained head.

        Backbone, weights and transform are those the head was trained behind; other weights are refused.
        """
        from featcache.inference import predict

        if as_csv and common.json:
            raise WrongUsage("expected --csv or --json, got both")
        with Terminal(quiet=common.quiet) as terminal:
            predicted = predict(
                run,
                replace_dash(images),
                weights=weights.by_name,
                data_dir=common.data_dir,
                runs_dir=common.runs_dir,
                reporter=terminal,
                **merge_fields(shown, how),
            )
        if common.json:
            print_json(predicted.to_json())
        elif as_csv:
            _print_csv(predicted)
        else:
            _print_table(predicted)


def replace_dash(images: Sequence[str]) -> list[str | bytes]:
    """The arguments, with the image on stdin, or the paths on its lines, in place of `-`."""
    replaced: list[str | bytes] = []
    for image in images:
        replaced += _from_stdin() if image == "-" else [image]
    return replaced


def _from_stdin() -> Sequence[str | bytes]:
    content = sys.stdin.buffer.read()
    # No path has a NUL, and no image of any size is without.
    return [content] if b"\0" in content else [line for line in os.fsdecode(content).splitlines() if line]


def _print_table(predicted: Predicted) -> None:
    header = ("image", *_answer_names(predicted))
    others = ("other classes",) if any(len(image.top) > 1 and image.labels is None for image in predicted) else ()
    near = ("most similar train images",) if any(image.neighbours for image in predicted) else ()
    rows = [
        (
            image.path,
            *_answer(image),
            *_others(image)[: len(others)],
            *_near(image)[: len(near)],
        )
        for image in predicted
    ]
    print_table(rows, header=(*header, *others, *near), optional=len(others) + len(near), shorten=(0,))


def _answer_names(predicted: Predicted) -> tuple[str, ...]:
    if predicted.target.kind == "numbers":
        return predicted.target.names
    return ("classes",) if predicted.target.kind == "lists" else ("class", "probability")


def _answer(image: ImagePrediction) -> tuple[str, ...]:
    """What the head predicts for an image, in the cells of a table."""
    if image.values is not None:
        return tuple(Bold(f"{value:.4g}") for value in image.values.values())
    if image.labels is not None:
        return (Bold(", ".join(f"{guess.label} {_percent(guess.probability)}" for guess in image.labels) or "none"),)
    return Bold(image.label), _percent(image.probability)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _others(image: ImagePrediction) -> tuple[str, ...]:
    return (", ".join(f"{guess.label} {_percent(guess.probability)}" for guess in image.top[1:]),)


def _near(image: ImagePrediction) -> tuple[str, ...]:
    def describe(near: NearImage) -> str:
        return f"{near.id} ({near.label or 'unlabelled'}, {near.similarity:.3f})"

    return (", ".join(map(describe, image.neighbours)),)


def _print_csv(predicted: Predicted) -> None:
    """Prints a line per image, as RFC 4180 has it except for the line ends."""
    guesses, near = (max(map(len, column)) for column in zip(*((i.top, i.neighbours) for i in predicted), strict=True))
    header = ["path"]
    if predicted.target.kind == "classes":
        header += ["label", "probability"]
        header += [f"{name}_{number}" for number in range(2, guesses + 1) for name in ("label", "probability")]
    else:
        header += predicted.target.names if predicted.target.kind == "numbers" else ["labels", "probabilities"]
    for number in range(1, near + 1):
        header += [f"neighbour_{number}", f"neighbour_{number}_label", f"neighbour_{number}_similarity"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_cells(image) for image in predicted)
    print_csv(text.getvalue())


def _cells(image: ImagePrediction) -> list[str | float | None]:
    cells: list[str | float | None] = [image.path]
    if image.values is not None:
        cells += image.values.values()
    elif image.labels is not None:
        cells.append(SEPARATOR.join(guess.label for guess in image.labels))
        cells.append(SEPARATOR.join(str(guess.probability) for guess in image.labels))
    else:
        for guess in image.top:
            cells += [guess.label, guess.probability]
    for near in image.neighbours:
        cells += [near.id, near.label, near.similarity]
    return cells
