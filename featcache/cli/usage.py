"""Errors of the command line itself (exit code 2), in the words of featcache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from featcache.errors import InvalidOption, UnknownName, nearest


class WrongUsage(typer.BadParameter):
    """A word of the command line that cannot be used; `hint` says what to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@contextmanager
def usage_errors() -> Iterator[None]:
    """Values of the command line are read here: one that cannot be used is an error of the command line."""
    try:
        yield
    except (InvalidOption, UnknownName) as error:
        raise WrongUsage(error.message, hint=error.hint) from None


def explain(error: Any, commands: Mapping[str, Any]) -> tuple[str, str | None]:
    """The message and the hint for an error that typer raises while it reads the command line.

    Args:
        error: An exception with `format_message` and the context `ctx`.
        commands: The commands by name.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "featcache"
    if isinstance(error, WrongUsage):
        return error.message, error.hint or f"see `{command} --help`"
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        return _unknown_option(error.option_name, context, command, commands)
    name = type(error).__name__
    if name == "MissingParameter" and error.param is not None:
        missing = usage_of(error.param, context) or error.param.opts[0]
        return f"{command} needs {missing}", f"see `{command} --help`"
    text = error.format_message().rstrip(".").replace("(s)", "")
    if (found := re.match("No such command '(.*?)'", text)) is not None:
        given = found[1]
        return f"unknown command {given!r}", nearest(given, sorted(commands)) or f"see `{command} --help`"
    return text[:1].lower() + text[1:], f"see `{command} --help`"


def _unknown_option(name: str, context: Any, command: str, commands: Mapping[str, Any]) -> tuple[str, str | None]:
    known = sorted({*_flags(context.command), *_flags(context.find_root().command)}) if context is not None else []
    message = f"{command} has no option {name}"
    owners = [other for other, one in commands.items() if name in _flags(one)]
    if owners:
        return message, f"it is an option of {', '.join(owners)}; see `{command} --help-all`"
    near = nearest(name, known) if name.startswith("--") else None
    return message, near if near is not None and near.startswith("did you mean") else f"see `{command} --help-all`"


def usage_of(parameter: Any, context: Any) -> str:
    """How an argument stands in the line that shows the usage: `RUN`, `[CACHE]`, `IMAGES...`."""
    return " ".join(parameter.get_usage_pieces(context)).replace("{", "").replace("}", "")


def _flags(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield from parameter.opts
            yield from parameter.secondary_opts
