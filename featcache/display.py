"""How records show themselves: one line at a prompt, small HTML tables in a notebook.

    @dataclass(frozen=True, kw_only=True, repr=False)
    class ExportedRun(Shown): ...

A dataclass needs `repr=False`, because it would write its own `__repr__` over the inherited one. A record shows its
fields, shortened, unless it has a `summary` of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any

from featcache.text import message_line

# Characters of a cell, and of the whole line at a prompt.
_LONGEST_CELL = 100
_LONGEST_LINE = 300
# Items of a list that are shown one by one, and rows of a table.
_MOST_ITEMS = 5
_MOST_ROWS = 10
# Pixels: most of a screen.
_FRAME_HEIGHT = 800


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text. Only its first rows are shown, with the number of the others."""

    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is shown of a record.

    Attributes:
        title: Its name.
        about: What follows the name, such as "on digits"; may be empty.
        facts: Names and values; the line at a prompt has these only.
        tables: More, for a notebook.
        notes: Sentences below the tables.
    """

    title: str = ""
    about: str = ""
    facts: Sequence[tuple[str, object]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


class Shown:
    """A record with a short `__repr__`, and with HTML for notebooks."""

    def summary(self) -> Summary:
        """What is shown of it: its fields, shortened."""
        record: Any = self
        known = ((field.name, getattr(record, field.name)) for field in fields(record))
        return Summary(facts=[(name, value) for name, value in known if not _is_empty(value)])

    def __repr__(self) -> str:
        summary = self.summary()
        name = " ".join(filter(None, (type(self).__name__, summary.title, summary.about)))
        facts = ", ".join(f"{name} {short_text(value)}" for name, value in summary.facts)
        return f"<{shorten(f'{name}: {facts}' if facts else name, _LONGEST_LINE)}>"

    def _repr_html_(self) -> str:
        summary = self.summary()
        return as_html(summary if summary.title else Summary(title=type(self).__name__, facts=summary.facts))


def short_text(value: object) -> str:
    """A value as one line of at most 100 characters: of long lists their length, of arrays type and shape."""
    return shorten(_text(value), _LONGEST_CELL)


def shorten(text: str, longest: int) -> str:
    """Text as one line, cut to `longest` characters."""
    line = message_line(text)
    return line if len(line) <= longest else f"{line[: longest - 2]}.."


def as_html(summary: Summary) -> str:
    """A heading and tables, with every text escaped. They have no style of their own."""
    facts = [Table(rows=summary.facts)] if summary.facts else []
    notes = "".join(f"<p><small>{escape(shorten(note, 3 * _LONGEST_CELL))}</small></p>" for note in summary.notes)
    tables = "".join(map(_table, (*facts, *summary.tables)))
    about = f"<br>{escape(short_text(summary.about))}" if summary.about else ""
    return f"<div><p><strong>{escape(short_text(summary.title))}</strong>{about}</p>{tables}{notes}</div>"


def frame_html(page: str, caption: str) -> str:
    """A whole HTML page inside a notebook's cell: its styles and scripts are kept apart from the notebook's."""
    # Without a base of its own, a link to a section would open the notebook inside the frame.
    framed = page.replace("<head>", '<head><base href="about:srcdoc">', 1)
    return (
        f'<iframe srcdoc="{escape(framed, quote=True)}" sandbox="allow-scripts" title="{escape(caption, quote=True)}" '
        f'style="width:100%;height:{_FRAME_HEIGHT}px;border:0;background:#fff"></iframe>'
        f"<p><small>{escape(caption)}</small></p>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    shown = table.rows if len(table.rows) <= _MOST_ROWS + 1 else table.rows[:_MOST_ROWS]
    body = "".join(map(_table_row, shown))
    more = len(table.rows) - len(shown)
    rest = f"<p><small>and {more:,} more</small></p>" if more else ""
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>{rest}"


def _table_row(cells: Sequence[object]) -> str:
    first, *others = (escape(short_text(cell)) for cell in cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | tuple | list | Mapping) and not value)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, str | Path):
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return _list_text(len(value), (f"{name} {_item_text(one)}" for name, one in value.items()))
    if isinstance(value, Sequence | set | frozenset):
        return _list_text(len(value), map(_item_text, value))
    # The value of a frozen record is named, not unfolded.
    return type(value).__name__ if is_dataclass(value) and not isinstance(value, Shown) else repr(value)


def _item_text(value: object) -> str:
    """An item of a list; what has items itself is only counted."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"[{len(value):,}]"
    return type(value).__name__ if is_dataclass(value) else _text(value)


def _list_text(count: int, items: Iterable[str]) -> str:
    return ", ".join(items) if count <= _MOST_ITEMS else f"{count:,} items, the first {next(iter(items))}"
