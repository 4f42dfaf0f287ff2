"""Columns of a table of images: which ones become targets, and what kind of values each holds.

    kind      a cell holds
    classes   a name
    lists     names separated by `;`: several classes, or none
    numbers   a number
    groups    a name; images of one group must not be separated
    text      any text

A cell that is empty, blank or `nan` has no value: the image is unlabelled for that column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Final

from featcache.config import Option, check
from featcache.errors import InvalidOption, UnknownName, nearest

#: The kinds of values that a head can predict.
TARGET_KINDS: Final = ("classes", "lists", "numbers")
KINDS: Final = (*TARGET_KINDS, "groups", "text")
#: The name of the main target: classes from folder names, from a table's label column or from a data set.
LABEL: Final = "label"
#: Separates the class names of one image within a cell.
SEPARATOR: Final = ";"
#: A column of text holds classes if it has at most this many different values, or each occurs twice on average ...
FEW_CLASSES: Final = 20
#: ... and never more different values than this.
MOST_CLASSES: Final = 100_000
#: By default all columns of a table become targets if it has at most this many; else only the label.
MOST_DEFAULT_COLUMNS: Final = 12
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GROUP_NAME = re.compile(r"(group|patient|subject|participant)s?[ _-]?(id|no|number)?", re.IGNORECASE)
_PATTERN: Final = "*"


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Which columns of a table become targets, and what they hold.

    Args:
        columns: Columns to keep as targets: NAME, a pattern `NAME_*`, or TARGET=PATTERN.
        kinds: NAME=KIND for columns whose kind should not be inferred; KIND is one of `KINDS`.

    Raises:
        InvalidOption: A kind that is unknown, or a text without a name.
    """

    PANEL: ClassVar[str] = "Which columns"

    columns: Annotated[
        tuple[str, ...],
        Option(
            help="A column to keep as a target. May be repeated; without it the label is kept, and all other columns "
            "if there are at most 12. `NAME_*` makes one target of several columns of 0 and 1; TARGET=PATTERN names "
            "it.",
            flags=("--column",),
            metavar="<name>",
            default="label, and others if few",
        ),
    ] = ()
    kinds: Annotated[
        tuple[str, ...],
        Option(
            help="What a column holds: classes, lists (several classes, `a;b`), numbers, groups or text; may be "
            "repeated.",
            flags=("--kind",),
            metavar="<name>=<kind>",
            default="inferred from its cells",
            advanced=True,
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        for name, kind in self.kind_of.items():
            if kind not in KINDS:
                raise InvalidOption(
                    f"expected --kind {name}={', '.join(KINDS[:-1])} or {KINDS[-1]}, got {name}={kind}",
                    hint=nearest(kind, KINDS),
                )

    @property
    def kind_of(self) -> dict[str, str]:
        """The kind of each column for which one is given."""
        pairs = [text.rpartition("=") for text in self.kinds]
        if any(not name for name, _, _ in pairs):
            raise InvalidOption(f"expected --kind NAME=KIND, got {' '.join(self.kinds)}")
        return {name: kind for name, _, kind in pairs}

    def without(self, name: str) -> ColumnOptions:
        """A copy of these options without one column."""
        return ColumnOptions(
            columns=tuple(one for one in self.columns if one != name),
            kinds=tuple(text for text in self.kinds if text.rpartition("=")[0] != name),
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One target and the columns of a table that it is made from.

    Args:
        name: The name of the target.
        columns: The columns: one, or several that hold 0 and 1.
        names: The class that each column stands for, if there are several.
    """

    name: str
    columns: tuple[str, ...]
    names: tuple[str, ...] = ()

    def cell(self, cells: Sequence[str | None]) -> str | None:
        """Combine the cells of the columns into the target's cell. Raises InvalidOption for one that is not 0 or 1."""
        if not self.names:
            return cells[0]
        marks = [_mark(self.name, column, cell) for column, cell in zip(self.columns, cells, strict=True)]
        if all(mark is None for mark in marks):
            return None
        # The leading separator keeps the cell from being empty if no class is marked: "no class" is a value too.
        return SEPARATOR + SEPARATOR.join(name for name, mark in zip(self.names, marks, strict=True) if mark)


_MARKS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "-1", "-1.0", "false", "no"), False),
}


def _mark(target: str, column: str, cell: str | None) -> bool | None:
    text = cell_text(cell)
    if text is None:
        return None
    if text.lower() not in _MARKS:
        raise InvalidOption(
            f"target {target}: expected 0 or 1 in the column {column}, got {text!r}",
            hint="a pattern joins columns of 0 and 1 into one target",
        )
    return _MARKS[text.lower()]


def is_target_name(name: str) -> bool:
    """Whether a name is valid for a target and an HDF5 link: 1 to 200 printable characters, no slash."""
    return 0 < len(name) <= 200 and name.isprintable() and "/" not in name and name not in (".", "..")


def choose(table: str, names: Sequence[str], options: ColumnOptions, *, default: Sequence[str]) -> tuple[Choice, ...]:
    """The targets that the options request.

    Args:
        table: The name of the table, for messages.
        names: The names of its columns.
        options: The requested columns and kinds.
        default: The columns to use if none is requested.

    Returns:
        The requested targets, in the order of the options.

    Raises:
        UnknownName: A requested column does not exist.
        InvalidOption: A pattern matches no column, or a kind is given for a column that is not a target.
    """
    for name in options.kind_of:
        if name not in names and not any(name == _target_of(text)[0] for text in options.columns):
            raise UnknownName(f"column of {table}", name, names)
    requested = options.columns or tuple(default)
    chosen: dict[str, Choice] = {}
    for choice in (_choice(table, names, text) for text in requested):
        if chosen.setdefault(choice.name, choice) != choice:
            raise InvalidOption(f"two targets are named {choice.name}", hint="name one of them: TARGET=COLUMN")
        _require_fitting(choice, options)
    unused = sorted(set(options.kind_of) - set(chosen))
    if unused:
        raise InvalidOption(f"--kind is given for {', '.join(unused)}, which is no target", hint="add --column for it")
    return tuple(chosen.values())


def _require_fitting(choice: Choice, options: ColumnOptions) -> None:
    """Raises InvalidOption for an invalid target name, or if several columns become anything but lists."""
    if not is_target_name(choice.name):
        raise InvalidOption(f"a target cannot be called {choice.name!r}", hint=f"--column NAME={choice.columns[0]}")
    kind = options.kind_of.get(choice.name, "lists")
    if choice.names and kind != "lists":
        raise InvalidOption(f"target {choice.name}: several columns of 0 and 1 are lists, not {kind}")


def _choice(table: str, names: Sequence[str], text: str) -> Choice:
    if text in names:
        return Choice(name=text, columns=(text,))
    target, pattern = _target_of(text)
    if _PATTERN not in pattern:
        if pattern != text and pattern in names:
            return Choice(name=target, columns=(pattern,))
        raise UnknownName(f"column of {table}", text, names)
    fitting = tuple(name for name in names if fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]")))
    if not fitting:
        raise InvalidOption(f"no column of {table} fits {pattern!r}", hint=f"it has {', '.join(names)}")
    start, _, end = pattern.partition(_PATTERN)
    inside = tuple(name[len(start) : len(name) - len(end)] for name in fitting)
    return Choice(name=target, columns=fitting, names=inside)


def _target_of(text: str) -> tuple[str, str]:
    """The name of the target and the pattern in `TARGET=PATTERN` or `PATTERN`."""
    target, equals, pattern = text.partition("=")
    return (target, pattern) if equals and target else (text.replace(_PATTERN, "").strip(" _-.:/"), text)


# --- what a cell, and what a column holds ------------------------------------------------------------------


def cell_text(cell: object) -> str | None:
    """A cell as text without surrounding blanks; None if it has no value."""
    if cell is None:
        return None
    text = str(cell).strip()
    return None if not text or text.lower() == "nan" else text


def number_in(text: str) -> float | None:
    """The finite number that a text represents; None if it is not a number."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def infer_kind(name: str, cells: Iterable[object]) -> str:
    """Infer the kind of a column from its name and cells.

    Groups if it is named group, patient, subject or participant (also with `_id`); numbers if all cells are numbers;
    lists if a cell contains `;`; classes if there are at most 20 different values, or each occurs twice on average;
    else text.

    Args:
        name: The name of the column.
        cells: Its cells; read once, in order.
    """
    if is_group_name(name):
        return "groups"
    numbers, lists, count = True, False, 0
    different: set[str] = set()
    for text in map(cell_text, cells):
        if text is None:
            continue
        count += 1
        numbers = numbers and number_in(text) is not None
        lists = lists or SEPARATOR in text
        if len(different) <= MOST_CLASSES:
            different.add(text)
    if count and numbers:
        return "numbers"
    if lists:
        return "lists"
    return "classes" if len(different) <= min(MOST_CLASSES, max(FEW_CLASSES, count // 2)) else "text"


def is_group_name(name: str) -> bool:
    """Whether the name of a column says that it holds groups."""
    return _GROUP_NAME.fullmatch(name.strip()) is not None


def infer_label_kind(names: Iterable[str]) -> str:
    """Infer the kind of a label column from its different values: classes, unless some are lists or fractions."""
    texts = list(names)
    if any(SEPARATOR in text for text in texts):
        return "lists"
    numbers = [number_in(text) for text in texts]
    fractions = any(number is not None and number != int(number) for number in numbers)
    return "numbers" if fractions and None not in numbers else "classes"
