"""`featcache reproduce`: runs the notebook's experiments again and compares the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import completion
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.groups import Without
from featcache.cli.options import Common
from featcache.cli.output_folder import prepare_folder, publish
from featcache.cli.printing import Bold, print_json, print_line, print_next, print_table
from featcache.cli.terminal import Terminal
from featcache.config import Option, non_default_options
from featcache.errors import InvalidOption
from featcache.images.options import ImageOptions
from featcache.sweeps.options import SweepOptions
from featcache.training.options import TrainingOptions

if TYPE_CHECKING:
    from featcache.extraction.request import Request
    from featcache.notebook.recipes import Recipe
    from featcache.notebook.reproduction import Reproduction

_WHAT = "Which experiments"
_FILES = ("reproduce.md", "reproduce.json")


def register(app: typer.Typer) -> None:
    """Add `reproduce` to the typer app."""

    @command(
        app,
        "reproduce",
        section="From images to a head",
        examples=(
            "featcache reproduce mlp mlp-wide --seeds 3",
            "featcache reproduce vgg16 --weights vgg16.safetensors --output tables/",
        ),
    )
    def reproduce(
        recipes: Annotated[
            list[str] | None,
            typer.Argument(
                autocompletion=completion.recipes,
                help="Of `featcache recipes`. [default: all]",
                metavar="RECIPE",
                rich_help_panel=_WHAT,
            ),
        ] = None,
        weights: Annotated[
            tuple[str, ...],
            Option(
                help="What --weights of extract takes. Of several networks: NETWORK=SOURCE; may be repeated.",
                default="torchvision's",
                metavar="<source>",
                panel=_WHAT,
            ),
        ] = (),
        as_written: Annotated[
            bool,
            Option(
                help="Image size and normalisation as in the notebook, not as the weights were trained.",
                flags=("--as-written",),
                panel=_WHAT,
            ),
        ] = False,
        output: Annotated[
            Path | None,
            Option(
                help=f"Also write the table there, as {' and '.join(_FILES)}, anew after every recipe.",
                metavar="<folder>",
                panel=_WHAT,
            ),
        ] = None,
        *,
        images: Annotated[ImageOptions, Without("split_by_folder", "splits", "select_seed")],
        which: Annotated[SweepOptions, Without("folds", "shots", "draws")],
        how: Annotated[TrainingOptions, Without("logger", "trainer", "resident_bytes")],
        common: Common,
    ) -> None:
        """Run the notebook's experiments and compare them with it.

        Features are extracted unless they are cached. Recipes with the same features are one sweep, and the best head
        of each becomes a run. A recipe agrees when its last epoch's accuracy on val, the mean over the seeds, is within
        1.5 points of the notebook's.
        """
        from featcache.notebook.recipes import recipe, recipe_names

        chosen = [recipe(name) for name in dict.fromkeys(recipes or recipe_names())]
        if as_written:
            chosen = [one.as_written() for one in chosen]
        sources = weights_by_backbone(weights, [one.backbone for one in chosen if one.weights is not None])
        requests = [_request(one, images, sources, common) for one in chosen]
        if output is not None:
            prepare_folder(output)
        rows: list[Reproduction] = []
        with Terminal(quiet=common.quiet) as terminal:
            training = _Training(seeds=which.seeds, how=how, runs_dir=common.runs_dir, terminal=terminal)
            names = [one.name for one in chosen]
            interrupted = _collect(rows, _reproductions(chosen, requests, training), names, output)
        if common.json:
            print_json(_answer(rows))
        else:
            _show(rows)
        if interrupted:
            raise typer.Exit(INTERRUPTED)
        print_next(common, "report")


def _collect(
    rows: list[Reproduction], coming: Iterator[Reproduction], names: Sequence[str], output: Path | None
) -> bool:
    """Takes the rows as they come, in the order of `names`, and keeps them in files; whether Ctrl-C ended it."""
    try:
        for row in coming:
            rows.append(row)
            rows.sort(key=lambda one: names.index(one.recipe.name))
            if output is not None:
                _publish(rows, output)
    except KeyboardInterrupt:
        if not rows:
            raise
        return True
    return False


# --- extracting and training -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How every recipe is trained."""

    seeds: int
    how: TrainingOptions
    runs_dir: Path
    terminal: Terminal


def _reproductions(
    recipes: Sequence[Recipe], requests: Sequence[Request], training: _Training
) -> Iterator[Reproduction]:
    """The rows of the table, those of one cache together. Raises KeyboardInterrupt behind those that it cut short."""
    from featcache.extraction.resolve import resolve
    from featcache.extraction.run import Execution, carry_out

    execution = Execution(device=training.how.device)
    sharing: dict[Request, list[Recipe]] = {}
    for recipe, request in zip(recipes, requests, strict=True):
        sharing.setdefault(request, []).append(recipe)
    with ExitStack() as opened:
        # All of them before the first is run: weights that are missing show now, not after an hour.
        jobs = {one: opened.enter_context(resolve([one], execution, training.terminal)) for one in sharing}
        # One sweep a cache: what is trained is kept when a Ctrl-C ends the extraction of the next one.
        for request, several in sharing.items():
            (done,) = carry_out(jobs[request])
            yield from _train_together(several, done.cache, training)


def _train_together(recipes: Sequence[Recipe], path: Path, training: _Training) -> Iterator[Reproduction]:
    from featcache.cache.reader import FeatureCache
    from featcache.notebook.reproducing import reproductions, sweep_recipes

    terminal = training.terminal
    seeds = "one seed" if training.seeds == 1 else f"{training.seeds} seeds each"
    terminal.info(f"training {', '.join(one.name for one in recipes)}: {seeds}")
    with FeatureCache.open(path) as cache:
        found = sweep_recipes(
            cache,
            recipes,
            seeds=training.seeds,
            runs_dir=training.runs_dir,
            how=training.how,
            progress=lambda epochs, total: terminal.advance("training", epochs, total),
            report=terminal.info,
        )
        yield from reproductions(found, recipes, cache, report=terminal.info)
    if found.interrupted:
        raise KeyboardInterrupt


def _request(recipe: Recipe, images: ImageOptions, weights: dict[str, str], common: Common) -> Request:
    """The features that a recipe wants; recipes that share features have equal ones."""
    from featcache.extraction.request import Request

    return Request(
        **non_default_options(images),
        backbone=recipe.backbone,
        image_size=recipe.input.image_size,
        normalize=recipe.input.normalize,
        weights=weights.get(recipe.backbone, "default"),
        data_dir=common.data_dir,
    )


def weights_by_backbone(texts: Sequence[str], networks: Sequence[str]) -> dict[str, str]:
    """The source of the weights for each of the networks that the values of `--weights` name.

    Args:
        texts: A source alone, or `backbone=source`.
        networks: Those that have weights.

    Raises:
        InvalidOption: It is not clear which network is meant.
    """
    known = tuple(dict.fromkeys(networks))
    sources: dict[str, str] = {}
    for text in texts:
        name, source = _one_backbone(text, known)
        if name in sources:
            raise InvalidOption(f"expected one --weights for {name}, got {sources[name]} and {source}")
        sources[name] = source
    return sources


def _one_backbone(text: str, networks: Sequence[str]) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not networks:
        raise InvalidOption(
            f"--weights {text} is for none of these recipes: pixels has no weights", hint="leave --weights out"
        )
    # A path with = in it begins with something else, or can be written as ./path.
    if equals and name.isidentifier():
        if name not in networks:
            raise InvalidOption(
                f"expected --weights for {' or '.join(networks)}, got {text}",
                hint=f"for example --weights {networks[0]}={source}",
            )
        return name, source
    if len(networks) > 1:
        raise InvalidOption(
            f"--weights {text} does not say for which of {', '.join(networks)}",
            hint=" ".join(f"--weights {network}=<source>" for network in networks),
        )
    return networks[0], text


# --- the table ---------------------------------------------------------------------------------------------

_TITLES = (
    "recipe",
    "last",
    "best",
    "test",
    "loss",
    "epochs",
    "seconds",
    "notebook: val",
    "notebook: loss",
    "notebook: epochs",
    "notebook: minutes",
    "agrees",
)


# The columns that fit into 80, and what they are called on the screen; files have all of them.
_SHOWN = {
    "recipe": "recipe",
    "last": "last",
    "notebook: val": "notebook",
    "agrees": "agrees",
    "test": "test",
    "best": "best",
    "epochs": "epochs",
    "seconds": "seconds",
}


def _answer(rows: Sequence[Reproduction]) -> dict[str, Any]:
    return {"rows": [row.to_json() for row in rows]}


def _show(rows: Sequence[Reproduction]) -> None:
    cells, notes = _table(rows)
    verdicts = [row.agrees for row in rows if row.agrees is not None]
    if verdicts:
        print_line(Bold(f"{sum(verdicts)} of {len(verdicts)}"), " recipes agree with the notebook")
        print_line()
    shown = [_TITLES.index(title) for title in _SHOWN]
    print_table([[row[number] for number in shown] for row in cells], header=[*_SHOWN.values()])
    print_line()
    for line in (*_legend(rows), *notes):
        print_line(line)


def _table(rows: Sequence[Reproduction]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of the table, and the notes that they point to."""
    reasons = list(dict.fromkeys(doubt for row in rows for doubt in row.doubts))
    cells = [(*_result_cells(row), *_notebook_cells(row), _verdict(row, reasons)) for row in rows]
    return cells, [f"[{number}] not comparable: {reason}" for number, reason in enumerate(reasons, start=1)]


def _result_cells(row: Reproduction) -> tuple[str, ...]:
    test = row.test
    return (
        row.recipe.name,
        _points(row.last.accuracy),
        _points(row.val.accuracy),
        "-" if test is None else _points(test.accuracy),
        f"{row.last.loss:.4f}",
        f"{row.epochs:.3g}",
        f"{row.seconds:.1f}",
    )


def _notebook_cells(row: Reproduction) -> tuple[str, ...]:
    notebook = row.recipe.notebook
    return (
        _points(notebook.accuracy),
        f"{notebook.loss:.4f}",
        "-" if notebook.epochs is None else str(notebook.epochs),
        "-" if notebook.minutes is None else f"{notebook.minutes:g}",
    )


def _verdict(row: Reproduction, reasons: Sequence[str]) -> str:
    if row.agrees is None:
        return " ".join(["-", *(f"[{reasons.index(doubt) + 1}]" for doubt in row.doubts)])
    return "yes" if row.agrees else "no"


def _points(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def _legend(rows: Sequence[Reproduction]) -> tuple[str, ...]:
    seeds = max(len(row.seeds) for row in rows)
    means = "one seed (seeds scatter by a point or two: --seeds 3)" if seeds == 1 else f"means of {seeds} seeds"
    return (
        f"On {rows[0].set_name}, {means}. Accuracies in per cent, seconds of the fit alone.",
        "last: the last epoch on val, which is what the notebook measured.",
        "best: the best epoch on val; test: that epoch on test.",
        "agrees: last is within 1.5 points of the notebook.",
    )


def _markdown(rows: Sequence[Reproduction]) -> str:
    cells, notes = _table(rows)
    lines = [_TITLES, ("---", *("---:" for _ in _TITLES[1:-1]), "---"), *cells]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    paragraphs = [
        "# The notebook's experiments",
        table,
        "\n".join(_legend(rows)),
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _publish(rows: Sequence[Reproduction], folder: Path) -> None:
    from featcache.runs.files import json_bytes

    markdown, answer = _FILES
    publish({markdown: _markdown(rows).encode(), answer: json_bytes(_answer(rows))}, folder)
