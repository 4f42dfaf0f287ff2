"""docs/commands.md, made from `--help`: `python -m featcache.cli.reference > docs/commands.md`."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from featcache.cli.app import app
from featcache.cli.sections import HELP_ALL

# As wide as on a terminal of 80 columns.
_WIDTH = 78


def reference() -> str:
    """The whole page: the `--help-all` of every command, in the order of `featcache --help`."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    root = typer.main.get_command(app)
    context = root.make_context("featcache", [], resilient_parsing=True, terminal_width=_WIDTH)
    yield "# Commands"
    yield ""
    yield "Made from `--help` by `python -m featcache.cli.reference > docs/commands.md`; a test compares them."
    yield ""
    yield from _fence(root.get_help(context))
    for name, command in getattr(root, "commands", {}).items():
        under = command.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=_WIDTH)
        under.meta[HELP_ALL] = True
        yield f"## featcache {name}"
        yield ""
        yield from _fence(command.get_help(under))


def _fence(text: str) -> Iterator[str]:
    yield "```text"
    yield text.rstrip()
    yield "```"
    yield ""


if __name__ == "__main__":
    print(reference(), end="")
