"""Results on stdout: one JSON object for programs, pairs and tables for people."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def print_line(text: str = "") -> None:
    """One line on stdout. Raises OSError, for a reader who has left BrokenPipeError, where it cannot be written."""
    with _writing():
        print(text)


def flush() -> None:
    """Everything printed so far is written. Raises what `print_line` raises."""
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


def print_json(value: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout, in one line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # A file name that is no UTF-8, or a console that knows less than Unicode.
        text = json.dumps(value, allow_nan=False)
    print_line(text)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout, a line each; nothing for no pairs."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print_line(f"{name.ljust(width)}  {value}".rstrip())


def print_table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str], optional: int = 0, line_after: int = 0
) -> None:
    """Columns on stdout, as wide as their content; a column whose cells are all numbers stands to the right.

    In a terminal that is too narrow, as many of the last `optional` columns are left out as must be. `line_after`:
    the number of rows after which a line stands, where others follow; 0 for none.
    """
    columns = [[name, *cells] for name, cells in zip(header, zip(*rows, strict=True), strict=True)]
    aligned = _fitting([_aligned(column) for column in columns], optional)
    for number, row in enumerate(zip(*aligned, strict=True)):
        print_line("  ".join(row).rstrip())
        if number == 0 or number == line_after < len(rows):
            print_line("  ".join("-" * len(cell) for cell in row))


def _fitting(columns: list[list[str]], optional: int) -> list[list[str]]:
    if sys.stdout is None or not sys.stdout.isatty():
        return columns
    room = shutil.get_terminal_size().columns
    while optional and sum(len(column[0]) + 2 for column in columns) - 2 > room:
        columns, optional = columns[:-1], optional - 1
    return columns


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    numeric = all(cell.removeprefix("≈ ")[:1].isdigit() or cell == "-" for cell in column[1:])
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in column]


def human_rows(rows: Mapping[str, int]) -> str:
    """{"test": 10, "train": 2000} -> "2,000 train, 10 test"."""
    return ", ".join(f"{rows[split]:,} {split}" for split in ("train", "val", "test") if split in rows)


def human_seconds(seconds: float) -> str:
    """75.2 -> "1m15s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
