"""How a function becomes a command: its option groups unfolded, its errors and its exit code translated.

0    done
1    an error the user can act on: two lines on stderr, `error:` and `hint:`
2    wrong usage
130  interrupted
141  nobody reads what the command says (`featcache ls | head -1`)
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from featcache.cli import clock
from featcache.cli.groups import Group, group_of
from featcache.cli.printing import flush
from featcache.cli.sections import SectionedCommand
from featcache.errors import FeatcacheError

INTERRUPTED = 130
UNREAD = 141


def command(app: typer.Typer, name: str, *, section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command whose parameters may be groups of options (`cli.groups`).

    `section` is where `featcache --help` lists it.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        groups = {key: group for key in parameters if (group := group_of(hints[key])) is not None}

        @functools.wraps(function)
        def run(**values: Any) -> None:
            clock.begin_command()
            with _translated(debug=bool(values.get("debug"))):
                folded = {key: group.folded(values) for key, group in groups.items()}
                function(**values, **folded)

        # What typer reads the options from.
        vars(run)["__signature__"] = _unfolded(parameters, hints, groups)
        return app.command(name, cls=SectionedCommand, rich_help_panel=section)(run)

    return register


def _unfolded(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], groups: Mapping[str, Group]
) -> inspect.Signature:
    flat: list[inspect.Parameter] = []
    for key, parameter in parameters.items():
        if key in groups:
            flat += groups[key].parameters()
        else:
            flat.append(parameter.replace(annotation=hints[key], kind=inspect.Parameter.KEYWORD_ONLY))
    return inspect.Signature(flat)


@contextmanager
def _translated(*, debug: bool) -> Iterator[None]:
    """Turns what featcache raises on purpose into two lines and an exit code."""
    try:
        yield
        flush()
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise typer.Exit(UNREAD) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if debug:
            raise
        _explain(error)
        raise typer.Exit(1) from None


def _explain(error: Exception) -> None:
    if isinstance(error, FeatcacheError):
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
    elif isinstance(error, OSError):
        what = error.strerror or str(error)
        _say(f"error: {what}" if error.filename is None else f"error: {error.filename}: {what}")
        _say("hint: --debug shows where it happened")
    else:
        _say(f"error: unexpected {type(error).__name__}: {error}")
        _say("hint: this is a fault of featcache; --debug shows where it happened")


def _say(text: str) -> None:
    # Two lines are two lines, whatever a message quotes.
    print(" ".join(text.splitlines()), file=sys.stderr)
