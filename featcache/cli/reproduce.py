"""`featcache reproduce`: the notebook's experiments again, beside what the notebook got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.cli import completion
from featcache.cli.commands import INTERRUPTED, command
from featcache.cli.options import Common
from featcache.cli.output_folder import prepare_folder, publish
from featcache.cli.printing import print_json, print_line, print_table
from featcache.cli.terminal import Terminal
from featcache.errors import InvalidOption

if TYPE_CHECKING:
    from featcache.cache.reader import FeatureCache
    from featcache.extraction.request import Request
    from featcache.heads.records import EpochRecord
    from featcache.notebook.recipes import Recipe
    from featcache.notebook.reproduction import Reproduction

_WHAT = "Which experiments"
_RUN = "How they run"
_FILES = ("reproduce.md", "reproduce.json")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """On what, and how often."""

    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            help="A set of `featcache datasets`, or a folder, zip or tar of class/image.",
            metavar="<name or path>",
            rich_help_panel=_WHAT,
        ),
    ] = "cifar10"
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="What --weights of extract takes. Where several networks are asked for, say which: vgg16=<source>; "
            "may be repeated. [default: torchvision's]",
            metavar="<source>",
            rich_help_panel=_WHAT,
        ),
    ] = None
    as_written: Annotated[
        bool,
        typer.Option(
            "--as-written",
            help="Image size and normalisation as in the notebook, not as the weights were trained.",
            rich_help_panel=_WHAT,
        ),
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(
            help="So many images per split, balanced over the classes. [default: all]",
            metavar="<images>",
            rich_help_panel=_WHAT,
        ),
    ] = None
    seeds: Annotated[
        int,
        typer.Option(help="Train so many heads each, and tell the mean.", metavar="<n>", min=1, rich_help_panel=_RUN),
    ] = 1
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", metavar="<device>", rich_help_panel=_RUN)
    ] = "auto"
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"Also write the table there, as {' and '.join(_FILES)}, anew after every recipe.",
            metavar="<folder>",
            rich_help_panel=_RUN,
        ),
    ] = None


def register(app: typer.Typer) -> None:
    """Adds this group's commands."""

    @command(app, "reproduce", section="From images to a head")
    def reproduce(
        recipes: Annotated[
            list[str] | None,
            typer.Argument(
                autocompletion=completion.recipes,
                help="Of `featcache recipes`. [default: all]",
                metavar="recipe",
                rich_help_panel=_WHAT,
            ),
        ] = None,
        *,
        options: ReproduceOptions,
        common: Common,
    ) -> None:
        """Run the notebook's experiments and compare them with it.

        Features are extracted unless they are cached. A recipe agrees when its last epoch's accuracy on val, the
        mean over the seeds, is within 1.5 points of the notebook's.
        """
        from featcache.notebook.recipes import recipe, recipe_names

        chosen = [recipe(name) for name in dict.fromkeys(recipes or recipe_names())]
        if options.as_written:
            chosen = [one.as_written() for one in chosen]
        requests = _requests(chosen, options, common)
        if options.output is not None:
            prepare_folder(options.output)
        rows: list[Reproduction] = []
        with Terminal(quiet=common.quiet) as terminal:
            interrupted = _collect(rows, _reproductions(chosen, requests, options, common, terminal), options.output)
        if common.json:
            print_json(_answer(rows))
        else:
            _show(rows)
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def _collect(rows: list[Reproduction], coming: Iterator[Reproduction], output: Path | None) -> bool:
    """Takes the rows as they come, and keeps them in files; whether Ctrl-C ended it. What is finished is told."""
    try:
        for row in coming:
            rows.append(row)
            if output is not None:
                _publish(rows, output)
    except KeyboardInterrupt:
        if not rows:
            raise
        return True
    return rows[-1].interrupted


# --- extracting and training -------------------------------------------------------------------------------


def _reproductions(
    recipes: Sequence[Recipe],
    requests: Sequence[Request],
    options: ReproduceOptions,
    common: Common,
    terminal: Terminal,
) -> Iterator[Reproduction]:
    from featcache.cache.reader import FeatureCache
    from featcache.extraction.resolve import resolve
    from featcache.extraction.run import Execution, carry_out

    execution = Execution(device=options.device)
    caches: dict[Request, Path] = {}
    with ExitStack() as opened:
        # All of them before the first is run: weights that are missing show now, not after an hour.
        jobs = {one: opened.enter_context(resolve([one], execution, terminal)) for one in dict.fromkeys(requests)}
        for recipe, request in zip(recipes, requests, strict=True):
            if request not in caches:
                (done,) = carry_out(jobs[request])
                caches[request] = done.cache
            with FeatureCache.open(caches[request]) as cache:
                row = _reproduced(recipe, cache, options, common, terminal)
            yield row
            if row.interrupted:
                return


def _reproduced(
    recipe: Recipe, cache: FeatureCache, options: ReproduceOptions, common: Common, terminal: Terminal
) -> Reproduction:
    from featcache.notebook.reproduction import Reproduction, comparison_doubts
    from featcache.runs.fit import fit_head

    def progress(epoch: EpochRecord) -> None:
        terminal.advance("training", epoch.epoch, epoch.max_epochs)

    trainings = []
    for seed in range(options.seeds):
        terminal.say(f"{recipe.name}, seed {seed}")
        run = fit_head(
            cache,
            replace(recipe.head, seed=seed),
            runs_dir=common.runs_dir,
            device=options.device,
            progress=progress,
            # The same sentences for every seed.
            report=terminal.say if seed == 0 else None,
        )
        # It may have stopped early: the next training begins a bar of its own.
        terminal.advance("training", run.training.epochs, run.training.epochs)
        trainings.append(run.training)
        if run.training.interrupted:
            break
    weights = cache.provenance.get("weights")
    return Reproduction(
        recipe=recipe,
        set_name=cache.set_name,
        seeds=tuple(range(len(trainings))),
        trainings=tuple(trainings),
        doubts=comparison_doubts(
            recipe, trainings, classes=cache.classes, weights=weights if isinstance(weights, str) else None
        ),
    )


def _requests(recipes: Sequence[Recipe], options: ReproduceOptions, common: Common) -> list[Request]:
    """The features that each recipe wants; recipes that share features have equal ones."""
    from featcache.extraction.request import Request

    weights = weights_by_backbone(options.weights or (), [one.backbone for one in recipes if one.weights is not None])
    return [
        Request(
            dataset=options.dataset,
            backbone=one.backbone,
            image_size=one.input.image_size,
            normalize=one.input.normalize,
            weights=weights.get(one.backbone, "default"),
            limit=options.limit,
            data_dir=common.data_dir,
        )
        for one in recipes
    ]


def weights_by_backbone(said: Sequence[str], networks: Sequence[str]) -> dict[str, str]:
    """What `--weights` says, a source alone or `backbone=source`, for each of the networks it speaks of.

    Raises InvalidOption where it is not clear whose weights are meant.
    """
    known = tuple(dict.fromkeys(networks))
    sources: dict[str, str] = {}
    for text in said:
        name, source = _one_backbone(text, known)
        if name in sources:
            raise InvalidOption(f"expected one --weights for {name}, got {sources[name]} and {source}")
        sources[name] = source
    return sources


def _one_backbone(text: str, networks: Sequence[str]) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not networks:
        raise InvalidOption(
            f"--weights {text} is for none of the asked recipes: pixels has no weights", hint="leave --weights out"
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

_HEADER = (
    "recipe",
    "last",
    "best",
    "test",
    "loss",
    "epochs",
    "seconds",
    "notebook",
    "loss",
    "epochs",
    "minutes",
    "agrees",
)
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


def _answer(rows: Sequence[Reproduction]) -> dict[str, Any]:
    return {"rows": [row.to_json() for row in rows]}


def _show(rows: Sequence[Reproduction]) -> None:
    cells, notes = _table(rows)
    print_table(cells, header=_HEADER)
    print_line()
    for line in (*_legend(rows), *notes):
        print_line(line)


def _table(rows: Sequence[Reproduction]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of the table, and the notes that they point to."""
    reasons = list(dict.fromkeys(doubt for row in rows for doubt in row.doubts))
    cells = [(*_measured(row), *_printed(row), _verdict(row, reasons)) for row in rows]
    return cells, [f"[{number}] not comparable: {reason}" for number, reason in enumerate(reasons, start=1)]


def _measured(row: Reproduction) -> tuple[str, ...]:
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


def _printed(row: Reproduction) -> tuple[str, ...]:
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
        "last: the last epoch on val, with its loss, which is what the notebook measured.",
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
