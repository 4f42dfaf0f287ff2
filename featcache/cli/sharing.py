"""`featcache push` and `featcache pull`: a run or a cache in a folder or on the Hub. They import no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli import completion
from featcache.cli.commands import command
from featcache.cli.options import Common
from featcache.cli.predict import SECTION
from featcache.cli.printing import Bold, human_count, human_path, print_json, print_line, print_next, print_pairs
from featcache.cli.terminal import Terminal
from featcache.sharing.records import PushOptions
from featcache.text import human_bytes

if TYPE_CHECKING:
    from featcache.sharing.records import Pulled, Pushed

_PLACE = "a folder, or hf:ORG/NAME, a repository of the Hugging Face Hub"


def register(app: typer.Typer) -> None:
    """Add `push` and `pull` to the typer app."""

    @command(
        app,
        "push",
        section=SECTION,
        examples=(
            "featcache push best shared/flowers --license mit",
            "featcache push cifar10-vgg16 hf:ORG/NAME --private",
        ),
    )
    def push(
        what: Annotated[
            str,
            typer.Argument(
                metavar="RUN_OR_CACHE",
                autocompletion=completion.runs_and_caches,
                help="A run or a cache: its path, its name, or how that begins; of runs also latest and best.",
            ),
        ],
        target: Annotated[
            str,
            typer.Argument(metavar="TARGET", autocompletion=completion.paths, help=f"Where to: {_PLACE}."),
        ],
        *,
        how: PushOptions,
        common: Common,
    ) -> None:
        """Share a run or a cache in a folder or on the Hub.

        Its safetensors, HDF5 and JSON files are copied as they are, with a card (README.md: backbone, digest of the
        weights, transform, metrics, licence) and a list of their SHA-256 (featcache.json). On the Hub, a run is a
        repository of models and a cache one of data sets; log in with `hf auth login`.
        """
        from featcache.sharing.pushing import push

        with Terminal(quiet=common.quiet) as terminal:
            done = push(
                what, target, data_dir=common.data_dir, runs_dir=common.runs_dir, reporter=terminal, **asdict(how)
            )
        print_json(done.to_json()) if common.json else _show_pushed(done, common)

    @command(
        app,
        "pull",
        section=SECTION,
        examples=(
            "featcache pull shared/flowers",
            "featcache pull hf:ORG/NAME",
        ),
    )
    def pull(
        source: Annotated[
            str,
            typer.Argument(metavar="SOURCE", autocompletion=completion.paths, help=f"Where from: {_PLACE}."),
        ],
        *,
        common: Common,
    ) -> None:
        """Take over a run or a cache that was pushed.

        A run gets into --runs-dir, a cache into --data-dir. Only safetensors, HDF5 and JSON files are taken, and only
        if their digests are right. hf:ORG/NAME@REVISION takes a branch, a tag or a commit. A different run or cache
        of the same name is never overwritten.
        """
        from featcache.sharing.pulling import pull

        with Terminal(quiet=common.quiet) as terminal:
            done = pull(source, data_dir=common.data_dir, runs_dir=common.runs_dir, reporter=terminal)
        print_json(done.to_json()) if common.json else _show_pulled(done, common)


def _show_pushed(done: Pushed, common: Common) -> None:
    where = human_path(done.target) if done.url is None else done.target
    verb = "pushed to" if done.copied else "already in"
    print_line(Bold(human_bytes(done.nbytes)), f" {verb} {where}: the {done.kind} {done.name}")
    print_pairs(
        [
            ("files", human_count(done.files, "file")),
            ("licence", done.licence or "not stated"),
            *([("page", done.url)] if done.url else []),
        ]
    )
    print_next(common, "pull", where)


def _show_pulled(done: Pulled, common: Common) -> None:
    where = human_path(done.path)
    verb = "pulled to" if done.copied else "already in"
    print_line(Bold(human_bytes(done.nbytes)), f" {verb} {where}: the {done.kind} {done.name}")
    print_pairs(
        [("files", f"{human_count(done.files, 'file')}, digests verified"), ("licence", done.licence or "not stated")]
    )
    if done.kind == "run":
        print_next(common, "predict", where, "photos/")
    else:
        print_next(common, "train-head", done.name)
