"""Results on stdout: one JSON object for programs; pairs, tables and the next command for people.

Names, paths and messages come from files that others made: control characters in them are printed as escapes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.text import escape_controls
from featcache.text import human_count as human_count

if TYPE_CHECKING:
    from featcache.cli.options import Common

_BOLD, _RESET = "\x1b[1m", "\x1b[0m"
# "1,442", "0.0001", "97.21 %", "1m15s", "≈ 3 MB", "512x7x7", "95.1 to 97.2"; but not "0001.png".
_NUMBER = re.compile(r"(≈ )?-?\d[\d,]*(\.\d+)?(e[+-]?\d+)?([hm]\d\d[ms])?(x[\dx]+)?( .*)?")
# No name is shortened to less than this, even where the table is then too wide.
_SHORTEST = 12
# Whether the command that runs has printed its JSON object.
_has_json = False


class Bold(str):
    """A text that `print_line`, `print_pairs` and `print_table` print bold where stdout is a terminal."""

    __slots__ = ()


def print_line(*parts: str) -> None:
    """Prints one line on stdout: the parts one after the other.

    Raises:
        OSError: It cannot be written; BrokenPipeError where the reader has closed the pipe.
    """
    with _writing():
        print("".join(map(_as_shown, parts)))


def flush() -> None:
    """Writes everything that was printed so far. Raises what `print_line` raises."""
    with _writing():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Python flushes stdout once more when it ends, and would complain again.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        # With EPIPE it is a BrokenPipeError again.
        raise OSError(error.errno, f"the result cannot be written: {error.strerror}") from error


def _as_shown(text: str) -> str:
    shown = escape_controls(text)
    return f"{_BOLD}{shown}{_RESET}" if isinstance(text, Bold) and shown and _shows_bold() else shown


def _shows_bold() -> bool:
    """Whether escape codes for bold belong on stdout; the variables are those that most programs respect."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    # Old consoles of Windows show the codes themselves.
    obeys = os.environ.get("TERM") != "dumb" and (os.name != "nt" or "WT_SESSION" in os.environ)
    return obeys and is_terminal()


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


# --- for programs ------------------------------------------------------------------------------------------


def begin_output() -> None:
    """To be called when a command begins: it has printed no JSON object yet."""
    global _has_json
    _has_json = False


def print_wrapped(text: str, *, width: int | None = None, indent: str = "") -> None:
    """Prints a text on stdout, in lines of at most `width` characters (None: as wide as the terminal)."""
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    for line in textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent):
        print_line(line)


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on stdout, in one line, unless this command has printed one: exactly one is promised.

    So an error that comes after the result, as of a cache that is not sound, is no second object.
    """
    global _has_json
    if _has_json:
        return
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    _has_json = True
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # A file name that is no UTF-8, or a console that knows less than Unicode.
        text = json.dumps(value, allow_nan=False)
    # What is left of control characters stands in strings, where JSON has an escape for each.
    print_line(re.sub(r"[\x7f-\u2069]", lambda match: _json_escape(match[0]), text))


def _json_escape(character: str) -> str:
    return character if escape_controls(character) == character else f"\\u{ord(character):04x}"


def print_csv(text: str) -> None:
    """Prints comma-separated values as UTF-8, whatever the encoding of the console is.

    They are printed as they are, except on a terminal, where control characters are escaped.
    """
    file = getattr(sys.stdout, "buffer", None)
    if file is None or is_terminal():
        for line in text.removesuffix("\n").split("\n"):
            print_line(line)
        return
    with _writing():
        sys.stdout.flush()
        file.write(_as_utf8(text))


def _as_utf8(text: str) -> bytes:
    try:
        # A file name that is no UTF-8 is written as its own bytes.
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


# --- for people --------------------------------------------------------------------------------------------


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Prints names and values on stdout, a line each; nothing for no pairs."""
    names = [escape_controls(name) for name, _ in pairs]
    width = max(map(_width, names), default=0)
    for name, (_, value) in zip(names, pairs, strict=True):
        print_line(name + " " * (width - _width(name) + 2 if value else 0), value)


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str],
    optional: int = 0,
    shorten: Sequence[int] = (),
    line_after: int = 0,
) -> None:
    """Prints columns on stdout, as wide as their content; a column whose cells are all numbers is right-aligned.

    Only in a terminal that is too narrow the table is made to fit.

    Args:
        rows: The cells; a `Bold` one is printed bold.
        header: The names of the columns.
        optional: How many of the last columns may be left out, the last one first.
        shorten: The numbers of the columns whose long cells may then be shortened in the middle.
        line_after: The number of rows after which a line is drawn, where others follow; 0 for none.
    """
    columns = [[_escape(name), *map(_escape, cells)] for name, *cells in zip(header, *rows, strict=True)]
    if is_terminal():
        columns = _fit(columns, optional, shorten)
    for number, row in enumerate(zip(*map(_align, columns), strict=True)):
        _print_row(row)
        if number == 0 or number == line_after < len(rows):
            print_line("  ".join("-" * _width(cell) for cell in row))


def _print_row(row: Sequence[str]) -> None:
    cells = [*row]
    while cells and not cells[-1].strip():
        del cells[-1]
    if cells:
        cells[-1] = type(cells[-1])(cells[-1].rstrip())
    print_line(*(part for number, cell in enumerate(cells) for part in (("  ", cell) if number else (cell,))))


def _escape(cell: str) -> str:
    return type(cell)(escape_controls(cell))


def _fit(columns: list[list[str]], optional: int, shorten: Sequence[int]) -> list[list[str]]:
    space = shutil.get_terminal_size().columns

    def excess() -> int:
        return sum(max(map(_width, column)) + 2 for column in columns) - 2 - space

    while optional and excess() > 0:
        columns, optional = columns[:-1], optional - 1
    for number in shorten:
        if number < len(columns) and excess() > 0:
            column = columns[number]
            width = max(_SHORTEST, _width(column[0]), max(map(_width, column)) - excess())
            columns[number] = [type(cell)(shorten_middle(cell, width)) for cell in column]
    return columns


def shorten_middle(text: str, width: int) -> str:
    """Text that is at most `width` columns wide: `pictures-vgg16-0f3c` -> `pictur…0f3c`."""
    shown, kept = text, len(text)
    while _width(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}{_ellipsis()}{text[len(text) - kept // 2 :]}"
    return shown


def _ellipsis() -> str:
    try:
        "…".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return ".."
    return "…"


def _align(column: Sequence[str]) -> list[str]:
    width = max(map(_width, column))
    numeric = all(cell in ("-", "") or _NUMBER.fullmatch(cell) for cell in column[1:])
    blanks = [" " * (width - _width(cell)) for cell in column]
    return [type(cell)(blank + cell if numeric else cell + blank) for cell, blank in zip(column, blanks, strict=True)]


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def human_rows(rows: Mapping[str, int]) -> str:
    """{"test": 10, "train": 2000} -> "2,000 train, 10 test"."""
    return ", ".join(f"{rows[split]:,} {split}" for split in ("train", "val", "test") if split in rows)


def human_list(names: Sequence[str], shown: int) -> str:
    """The first names, and how many more there are: "cat, dog and 3 more"."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def human_path(path: Path | str) -> str:
    """A path relative to the current folder where it is below that, else absolute."""
    try:
        absolute, here = os.path.abspath(path), os.getcwd()  # noqa: PTH100, PTH109 - links in it stay as they are
    except OSError:
        # The current folder is gone.
        return str(path)
    below = absolute.removeprefix(here.rstrip(os.sep) + os.sep)
    return below if below != absolute else absolute


def print_next(common: Common, *words: str | Path) -> None:
    """Prints the last line of a result, a `featcache` command that goes on from there; not with --quiet or --json.

    Args:
        common: Those of the command; folders that are not the default ones are named in the next one too.
        words: What follows `featcache`.
    """
    if not (common.quiet or common.json):
        print_line(f"next: {shlex.join(['featcache', *map(str, words), *_folder_words(common)])}")


def _folder_words(common: Common) -> list[str]:
    words = []
    for option, folder, default in (
        ("--data-dir", common.data_dir, os.environ.get("FEATCACHE_DATA_DIR") or "data"),
        ("--runs-dir", common.runs_dir, os.environ.get("FEATCACHE_RUNS_DIR") or "runs"),
    ):
        if human_path(folder) != human_path(default):
            words += [option, human_path(folder)]
    return words
