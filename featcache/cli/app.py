"""The Typer app: every command in one place, each imported from the file of its group.

Heavy imports stand inside command bodies: `featcache --help` never imports torch.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from typing import Annotated, Any

import typer

from featcache.cli import (
    audit,
    benchmark,
    caches,
    clock,
    doctor,
    export,
    extract,
    inventory,
    label,
    predict,
    report,
    reproduce,
    run,
    search,
    sharing,
    show,
    sweep,
    train,
)
from featcache.cli.commands import INTERRUPTED
from featcache.cli.groups import RecordGroup
from featcache.cli.options import Common
from featcache.cli.sections import SectionedGroup, page_width
from featcache.config import options_of

app = typer.Typer(
    name="featcache",
    cls=SectionedGroup,
    help="Run the backbone once. Train heads in seconds.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    # Rich alone costs as much as all the rest of `featcache --help`; `sections` writes the help instead.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": page_width()},
)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"featcache {version('featcache')}")
        raise typer.Exit


_COMMON = RecordGroup(Common, options_of(Common))


def _root(context: typer.Context, version: bool = False, **values: Any) -> None:
    """The options of every command, which they find in the context."""
    context.obj = _COMMON.fold(values)


_VERSION = typer.Option(
    "--version", callback=_version, is_eager=True, help="Show the version and stop.", rich_help_panel=Common.PANEL
)
vars(_root)["__signature__"] = inspect.Signature(
    [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *_COMMON.parameters(),
        inspect.Parameter(
            "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, _VERSION]
        ),
    ]
)
_root.__annotations__ = {}
app.callback()(_root)

_GROUPS = (
    extract,
    train,
    sweep,
    run,
    reproduce,
    benchmark,
    predict,
    search,
    report,
    export,
    sharing,
    caches,
    label,
    audit,
    inventory,
    show,
    doctor,
)
for group in _GROUPS:
    group.register(app)


def main() -> None:
    """The console script `featcache`."""
    clock.begin_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is no UTF-8 is shown with its bytes escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="featcache")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_at_once()
        raise


def _leave_at_once() -> None:
    """Ends the process after Ctrl-C without waiting for the end of torch: all that must be closed is closed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(INTERRUPTED)
