"""Help in sections, without Rich: `featcache --help` must be there at once.

`--help` of a command shows the usual options with the first sentence of their help; `--help-all` shows everything.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from featcache.cli.options import Common
from featcache.cli.printing import begin_output
from featcache.cli.usage import WrongUsage, explain, usage_of
from featcache.config import options_of

_WIDEST_NAME = 30
# A command with at most so many options and arguments has no shorter help.
_FEW_OPTIONS = 3
HELP_ALL = "--help-all"
_WIDEST_PAGE = 120

# Defaults that the short help leaves out.
_NEUTRAL = (
    "none]",
    "any]",
    "auto]",
    "0]",
    "0.0]",
    "all]",
    "the only one]",
    "the only one that fits]",
    "one head]",
    "constant]",
    "all images]",
    "1]",
)
Sections = dict[str, list[tuple[str, str]]]


class SectionedCommand(TyperCommand):
    """A command whose help shows its options under the panel each was given."""

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer: `--help-all` shows the whole help, whatever else stands on the line."""
        words = args[: args.index("--")] if "--" in args else args
        if HELP_ALL in words and not ctx.resilient_parsing:
            ctx.meta[HELP_ALL] = True
            typer.echo(ctx.get_help())
            raise typer.Exit
        remaining: list[str] = super().parse_args(ctx, args)
        return remaining

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Called by typer for the first line of the help."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Called by typer for `--help`: of the docstring the first paragraph; all of it for `--help-all`."""
        text = self.help or ""
        if not self._shows_all(ctx):
            text = text.split("\n\n")[0]
        formatter.write_paragraph()
        for number, paragraph in enumerate(text.split("\n\n")):
            if number:
                formatter.write_paragraph()
            formatter.write_text(" ".join(paragraph.split()))
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer for `--help`."""
        everything = self._shows_all(ctx)
        sections = _sections_of(self.get_params(ctx), ctx, everything=everything)
        hidden = sum(map(_is_hidden, self.params))
        if not everything:
            more = f"Show {hidden} more options, and all of the help." if hidden else "Show all of the help."
            sections[list(sections)[-1]].append((HELP_ALL, more))
        _write(formatter, sections, dense=not everything)
        words = " ".join(field.flag for field in options_of(Common))
        formatter.write_paragraph()
        formatter.write_text(f"Anywhere: {words}")

    def _shows_all(self, ctx: Any) -> bool:
        """Whether the whole help is shown: where it was asked for, and for commands with few options."""
        return bool(ctx.meta.get(HELP_ALL)) or len(self.params) <= _FEW_OPTIONS

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What the shell offers: the command's own options, then those of every command."""
        offered = list(super().shell_complete(ctx, incomplete))
        root = ctx.find_root()
        if incomplete.startswith("-") and root is not ctx:
            known = {one.value for one in offered}
            more = TyperCommand.shell_complete(root.command, root, incomplete)
            offered += [one for one in more if one.value.startswith("-") and one.value not in known]
        return offered


def command_class(examples: Sequence[str]) -> type[SectionedCommand]:
    """The class of a command with these examples in its help."""
    return type("SectionedCommand", (SectionedCommand,), {"examples": tuple(examples)})


class SectionedGroup(TyperGroup):
    """The root: its help shows the commands under the panel each was given, then the options of every command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer: the options of every command may stand anywhere on the line."""
        # While a line is completed in the shell it may end before an option's value.
        common, others = divide_words(args, unfinished=ctx.resilient_parsing)
        remaining: list[str] = super().parse_args(ctx, common + others)
        return remaining

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Runs the command line; its own errors are one line, a hint, and exit code 2."""
        words = list(sys.argv[1:] if args is None else args)
        begin_output()
        try:
            ended = super().main(words, standalone_mode=False, **extra)
        except Exception as error:
            if not (standalone_mode and hasattr(error, "format_message") and hasattr(error, "exit_code")):
                raise
            from featcache.cli.commands import print_error, report_error

            message, hint = explain(error, self.commands)
            report_error(message, hint)
            if "--json" in divide_words(words, unfinished=True)[0]:
                print_error("WrongUsage", message, hint, 2)
            sys.exit(2)
        if not standalone_mode:
            return ended
        # Without standalone mode an exit code is returned, not raised.
        sys.exit(ended if isinstance(ended, int) else 0)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer for `--help`."""
        sections: Sections = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(panel, []).append((name, command.get_short_help_str(formatter.width)))
        _write(formatter, sections)
        _write(formatter, _sections_of(self.get_params(ctx), ctx, everything=True))


def divide_words(args: Sequence[str], *, unfinished: bool = False) -> tuple[list[str], list[str]]:
    """Divide a command line into the options of every command, wherever they stand, and the other words.

    Args:
        args: The words.
        unfinished: Whether the last option may lack its value, as more words may follow.

    Returns:
        Those options with their values, and the other words in their order.

    Raises:
        WrongUsage: The last option lacks its value.
    """
    switches, valued = set[str](), set[str]()
    for field in options_of(Common):
        (switches if field.is_switch else valued).update(field.flags)
    common: list[str] = []
    others: list[str] = []
    words = iter(args)
    for word in words:
        name, has_value, _ = word.partition("=")
        if word == "--":
            others += [word, *words]
        elif word in switches:
            common.append(word)
        elif name in valued and not has_value:
            value = next(words, None)
            if value is None and not unfinished:
                raise WrongUsage(f"{word} needs a value", hint="see `featcache --help`")
            if value is None:
                others.append(word)
            else:
                common += [word, value]
        elif name in valued:
            common.append(word)
        else:
            others.append(word)
    return common, others


def page_width() -> int:
    """Columns of a page of help: those of the terminal, up to a readable line."""
    return min(shutil.get_terminal_size((80, 24)).columns, _WIDEST_PAGE)


def _is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _sections_of(parameters: Sequence[Any], ctx: Any, *, everything: bool) -> Sections:
    sections: Sections = {}
    for parameter in parameters:
        if _is_hidden(parameter) and not everything:
            continue
        name, text = _record(parameter, ctx)
        # --help comes last and stands with the last options.
        section = list(sections)[-1] if parameter.name == "help" and sections else _section(parameter)
        sections.setdefault(section, []).append((name, text if everything else _first_sentence(text)))
    return sections


def _record(parameter: Any, ctx: Any) -> tuple[str, str]:
    """How a parameter is written, and its help."""
    hidden = _is_hidden(parameter)
    if hidden:
        parameter.hidden = False
    try:
        found: tuple[str, str] | None = parameter.get_help_record(ctx)
    finally:
        if hidden:
            parameter.hidden = True
    name, text = found or (parameter.name, "")
    # An argument's record holds the name of a Python type.
    return (usage_of(parameter, ctx) if parameter.param_type_name == "argument" else name), text


def _first_sentence(text: str) -> str:
    """`One thing. Another. [default: 3]` -> `One thing. [default: 3]`; defaults that change nothing are left out."""
    body, _, default = text.partition("[default: ")
    default = "" if default in _NEUTRAL else default
    sentence = re.split(r"(?<=\.)\s+", body.strip(), maxsplit=1)[0]
    return f"{sentence} [default: {default}" if default else sentence


def _section(parameter: Any) -> str:
    panel: str | None = getattr(parameter, "rich_help_panel", None)
    if panel is not None:
        return panel
    return "Arguments" if parameter.param_type_name == "argument" else "Options"


def _write(formatter: Any, sections: Mapping[str, Sequence[tuple[str, str]]], *, dense: bool = False) -> None:
    """`dense`: without empty lines between the sections."""
    # One width for all of them, so that the columns of different sections stand in line.
    width = min(_WIDEST_NAME, max(len(name) for rows in sections.values() for name, _ in rows))
    for number, (title, rows) in enumerate(sections.items()):
        if not (dense and number):
            formatter.write_paragraph()
        formatter.write_heading(title)
        with formatter.indentation():
            formatter.write_dl(
                [(name.ljust(width), text.replace("  [", " [")) for name, text in rows], col_max=_WIDEST_NAME
            )
