"""Help in sections, without Rich: `featcache --help` must be there at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

_WIDEST = 30

Sections = dict[str, list[tuple[str, str]]]


class SectionedCommand(TyperCommand):
    """A command whose help shows its options under the panel each was given."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer for `--help`."""
        _write(formatter, _options(self.get_params(ctx), ctx))


class SectionedGroup(TyperGroup):
    """The root: its help shows the commands under the panel each was given, then its own options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Called by typer for `--help`."""
        sections: Sections = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            sections.setdefault(panel, []).append((name, command.get_short_help_str(formatter.width)))
        _write(formatter, sections)
        _write(formatter, _options(self.get_params(ctx), ctx))


def _options(parameters: Sequence[Any], ctx: Any) -> Sections:
    sections: Sections = {}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            # --help comes last and stands with the last options.
            section = list(sections)[-1] if parameter.name == "help" and sections else _section(parameter)
            sections.setdefault(section, []).append(record)
    return sections


def _section(parameter: Any) -> str:
    panel: str | None = getattr(parameter, "rich_help_panel", None)
    if panel is not None:
        return panel
    return "Arguments" if parameter.param_type_name == "argument" else "Options"


def _write(formatter: Any, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    # One width for all of them, so that the columns of different sections stand in line.
    width = min(_WIDEST, max(len(name) for rows in sections.values() for name, _ in rows))
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl([(name.ljust(width), text.replace("  [", " [")) for name, text in rows], col_max=_WIDEST)
