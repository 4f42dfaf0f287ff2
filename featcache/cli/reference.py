"""docs/commands.md, made from `--help`: `python -m featcache.cli.reference > docs/commands.md`."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from featcache.cli.app import app

# As wide as on a terminal of 80 columns.
_WIDTH = 78


def reference() -> str:
    """The whole page: what every command's `--help` says, in the order of `featcache --help`."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    root = typer.main.get_command(app)
    context = root.make_context("featcache", [], resilient_parsing=True, terminal_width=_WIDTH)
    yield "# Commands"
    yield ""
    yield "Made from `--help` by `python -m featcache.cli.reference > docs/commands.md`; a test compares them."
    yield ""
    yield from _fenced(root.get_help(context))
    for name, command in getattr(root, "commands", {}).items():
        under = command.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=_WIDTH)
        yield f"## featcache {name}"
        yield ""
        yield from _fenced(command.get_help(under))


def _fenced(text: str) -> Iterator[str]:
    yield "```text"
    yield text.rstrip()
    yield "```"
    yield ""


if __name__ == "__main__":
    print(reference(), end="")
