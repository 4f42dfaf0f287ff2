"""How a function becomes a command: its groups of options unfolded, its errors and its exit code translated.

0    done
1    an error the user can act on: two lines on stderr, `error:` and `hint:`, and with --json one object on stdout
2    the command line itself is wrong
3    `why --exit-code` and `audit --fail-on`: what was looked for is there
130  interrupted
141  the output is no longer read (`featcache ls | head -1`)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from featcache.cli import clock
from featcache.cli.groups import Group, group_of
from featcache.cli.options import Common
from featcache.cli.printing import begin_output, flush, print_json
from featcache.cli.sections import command_class
from featcache.errors import FeatcacheError
from featcache.text import message_line

INTERRUPTED = 130
FOUND = 3
UNREAD = 141


def command(
    app: typer.Typer, name: str, *, section: str, examples: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command whose parameters may be groups of options (`cli.groups`).

    Args:
        app: The application.
        name: The command's name.
        section: The heading under which `featcache --help` lists it.
        examples: Command lines for its help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
        groups = {key: group for key in parameters if (group := group_of(parameters[key], hints[key])) is not None}
        has_common, has_context = ("common" in parameters), ("context" in parameters)
        groups.pop("common", None)

        @functools.wraps(function)
        def run(context: typer.Context, **values: Any) -> None:
            clock.begin_command()
            begin_output()
            common = common_of(context)
            with _translate_errors(common):
                known = values | {"context": context}
                folded = {key: group.fold(known) for key, group in groups.items()}
                known.pop("context")
                if has_context:
                    folded["context"] = context
                if has_common:
                    folded["common"] = common
                function(**known, **folded)

        vars(run)["fields"] = [field for group in groups.values() for field in group.fields]
        # What typer reads the options from.
        vars(run)["__signature__"] = _signature_of(parameters, hints, groups)
        run.__annotations__ = {"context": typer.Context}
        return app.command(name, cls=command_class(examples), rich_help_panel=section)(run)

    return register


def common_of(context: typer.Context) -> Common:
    """The options that every command has, which stand at the root."""
    common = context.find_root().obj
    return common if isinstance(common, Common) else Common()


def _signature_of(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any], groups: Mapping[str, Group]
) -> inspect.Signature:
    flat = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for key, parameter in parameters.items():
        if key in groups:
            flat += groups[key].parameters()
        elif key not in ("common", "context"):
            flat.append(parameter.replace(annotation=hints[key], kind=inspect.Parameter.KEYWORD_ONLY))
    return inspect.Signature(flat)


@contextmanager
def _translate_errors(common: Common) -> Iterator[None]:
    """Turns what featcache raises on purpose into two lines and an exit code."""
    try:
        yield
        flush()
    except KeyboardInterrupt:
        _print_to_stderr("interrupted")
        if common.json:
            print_error("Interrupted", "interrupted", None, INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise typer.Exit(UNREAD) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if common.debug:
            raise
        message, hint = _explanation(error)
        report_error(message, hint)
        if common.json:
            print_error(type(error).__name__, message, hint, 1)
        raise typer.Exit(1) from None


def report_error(message: str, hint: str | None) -> None:
    """An error for people: one line, and one for its hint."""
    _print_to_stderr(f"error: {message}")
    for number, line in enumerate((hint or "").splitlines()):
        _print_to_stderr(f"  {line}" if number else f"hint: {line}")


def print_error(kind: str, message: str, hint: str | None, exit_code: int) -> None:
    """An error for programs: the one object on stdout."""
    with contextlib.suppress(OSError):
        print_json({"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}})


def _explanation(error: Exception) -> tuple[str, str | None]:
    """Message and hint."""
    if isinstance(error, FeatcacheError):
        return error.message, error.hint
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        message = what if error.filename is None else f"{error.filename}: {what}"
        return message, "featcache --debug shows where it happened"
    text = f"unexpected {type(error).__name__}: {error}"
    return text, "this is a fault of featcache; featcache --debug shows where it happened"


def _print_to_stderr(text: str) -> None:
    # Two lines are two lines, whatever a message quotes.
    print(message_line(text), file=sys.stderr)
