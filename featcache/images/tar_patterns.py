"""Expands patterns for many tars, as in WebDataset: `set/{train,extra}-{000..099}.tar`, `set/*.tar`.

Braces are those of bash, and every file that they name must exist. `*`, `?` and `[...]` match existing files. A file
whose name is the pattern itself has precedence.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from braceexpand import braceexpand

from featcache.errors import SourceError

_MOST_TARS: Final = 100_000
_MOST_CHARACTERS: Final = 2_000
_INNERMOST: Final = re.compile(r"\{([^{}]*)\}")
_NUMBERS: Final = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS: Final = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")
_COUNTED: Final = re.compile("\0([0-9]+)\0")
_WILD: Final = re.compile(r"[*?\[{]")


def tars_of(pattern: Path) -> tuple[Path, list[Path]]:
    """Expand a pattern.

    Returns:
        The folder that contains all tars, directly or in subfolders, and the tars in the pattern's order, each once.

    Raises:
        SourceError: Braces are not closed, name too many files, or name one that does not exist.
    """
    base = _folder_of(pattern)
    text = str(pattern.relative_to(base))
    tars: dict[Path, None] = {}
    for name in [text] if os.path.lexists(base / text) else _expand(text):
        existing = _existing(base, name)
        if not existing and name != text:
            raise SourceError(f"{base / name} is missing", hint="every file that the braces name must exist")
        tars |= dict.fromkeys(existing)
    return base, list(tars)


def _existing(base: Path, name: str) -> list[Path]:
    if Path(name).is_absolute():
        raise SourceError(f"{name} is outside {base}", hint="give the folder before the braces")
    # Only `lexists`: a pipe with such a name is refused later, when it is opened, with its name in the message.
    if os.path.lexists(base / name):
        return [base / name]
    try:
        return sorted(base.glob(name)) if _WILD.search(name) else []
    except (ValueError, OSError) as error:
        raise SourceError(f"{base / name}: {error}", hint="`**` stands for whole folders only") from error


def _folder_of(pattern: Path) -> Path:
    base = pattern.parent
    while _WILD.search(str(base)) and not os.path.isdir(base):  # noqa: PTH112
        base = base.parent
    return base


def _expand(text: str) -> list[str]:
    count = count_names(text)
    if count > _MOST_TARS:
        raise SourceError(
            f"{text[:100]}: the braces name {_in_words(count)} files, at most {_MOST_TARS:,} are read",
            hint="name fewer files, or give their folder",
        )
    try:
        return list(braceexpand(text, escape=False))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{text[:100]}: the braces cannot be read: {error}", hint=r"close each { with a }") from error


def _in_words(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "more than a million billion"


def count_names(text: str) -> int:
    """The number of names that the braces stand for. Nothing is expanded: `{0..999999999}` would fill the memory."""
    if len(text) > _MOST_CHARACTERS or "\0" in text:
        raise SourceError(f"{text[:100]!r}..: expected a pattern of at most {_MOST_CHARACTERS:,} characters")
    while (found := _INNERMOST.search(text)) is not None:
        text = f"{text[: found.start()]}\0{_alternatives(found[1])}\0{text[found.end() :]}"
        if len(text) > 2 * _MOST_CHARACTERS:
            return 10**15
    return _product(text)


def _alternatives(inside: str) -> int:
    numbers = _NUMBERS.fullmatch(inside)
    if numbers is not None:
        first, last, step = numbers.groups()
        return abs(int(last) - int(first)) // (int(step or 1) or 1) + 1
    if _LETTERS.fullmatch(inside):
        return 52
    return sum(map(_product, inside.split(",")))


def _product(text: str) -> int:
    product = 1
    for number in _COUNTED.findall(text):
        product *= int(number)
    return product
