"""Class names: normalises them, numbers them as they occur, and refuses two that look alike."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from featcache.errors import SourceError
from featcache.images.samples import UNLABELLED

# Characters without width: joiners, direction marks, soft hyphens, byte order marks. Not the tag characters of emoji
# flags, which distinguish the flags of England and Scotland.
_INVISIBLE = "".join(
    map(chr, (0x00AD, 0x061C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF))
)
_BLANK = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ENDS = _BLANK + _INVISIBLE
_WITHOUT_INVISIBLE = dict.fromkeys(map(ord, _INVISIBLE))

_SEPARATORS = re.compile(r"[\s_-]+")
# Between digits a separator matters: 1-2 is not 12.
_NEEDLESS_SEPARATOR = re.compile(r"(?<!\d) | (?!\d)")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# Python refuses to convert longer texts to a number.
_MOST_DIGITS = sys.int_info.default_max_str_digits


def clean(name: str) -> str:
    """Normalise a class name: NFC, without blanks and invisible characters at its ends."""
    if name.isascii():
        return name.strip()
    return unicodedata.normalize("NFC", name).strip(_ENDS)


class ClassNames:
    """Numbers class names in the order in which they occur; `in_order` maps these numbers to sorted classes.

    Names that are equal after `clean` are one class; `merged` lists them.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        # The number of every spelling of a name, so that each spelling is cleaned only once.
        self._written: dict[str, int] = {}
        self._first: list[str] = []
        self._merged: list[tuple[str, str]] = []

    def number(self, name: str | None) -> int:
        """The number of a class, a new one at its first occurrence; -1 for None and for a name that `clean` empties."""
        if not name:
            return UNLABELLED
        found = self._written.get(name)
        return self._new(name) if found is None else found

    def _new(self, written: str) -> int:
        name = clean(written)
        number = self._numbers.setdefault(name, len(self._numbers)) if name else UNLABELLED
        self._written[written] = number
        if number == len(self._first):
            self._first.append(written)
        elif name:
            self._merged.append((self._first[number], written))
        return number

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of their numbers."""
        return tuple(self._numbers)

    @property
    def merged(self) -> list[tuple[str, str]]:
        """Pairs of spellings that are one class; the one that occurred first comes first."""
        return list(self._merged)

    def in_order(self, *, by_value: bool = True) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        """The sorted names, and for each number its index among them.

        Args:
            by_value: Sort by value if all are whole numbers (2 before 10); else always by code points.

        Returns:
            The names, and the index of each number, int64 (n,).
        """
        names = list(self._numbers)
        numeric = by_value and all(name.isdecimal() and len(name) < _MOST_DIGITS for name in names)
        classes = sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))
        place = {name: position for position, name in enumerate(classes)}
        return tuple(classes), np.array([place[name] for name in names], np.int64)


def refuse_lookalikes(names: Iterable[str], where: str) -> None:
    """Refuse two different names that look alike: `hot dog` and `Hot_dog`, `1` and `01`.

    Names that differ only in blanks, hyphens, underscores, invisible characters or case look alike. Names of one
    character may differ in case: A and a are different classes of handwriting.

    Raises:
        SourceError: Two names look alike; the message shows both.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_look(name), name)
        if other != name:
            raise SourceError(
                f"{where}: the classes {_quote(other)} and {_quote(name)} look alike; expected one name per class",
                hint="write them in the same way if they are one class; use clearly different names if they are two",
            )


def join_classes(
    classes: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """Join the classes of several splits into one list.

    Returns:
        The list, and by split the index in it of each of the split's classes, int64 (n,).

    Raises:
        SourceError: Two names look alike, or one split has numbers and another names.
    """
    every = max(classes.values(), key=len, default=())
    if all(own == every[: len(own)] for own in classes.values()):
        return every, {split: np.arange(len(own)) for split, own in classes.items()}
    _refuse_numbers_beside_names(classes)
    class_names = ClassNames()
    numbers = {split: [class_names.number(name) for name in own] for split, own in classes.items()}
    joined, place = class_names.in_order()
    refuse_lookalikes(joined, "the splits together")
    return joined, {split: place[np.array(some, np.int64)] for split, some in numbers.items()}


def _refuse_numbers_beside_names(classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse splits of which one has numbers as classes and another names: nothing maps the numbers to the names.

    Args:
        classes: The classes of each split.

    Raises:
        SourceError: There are such splits; the message names both.
    """
    numbers = [split for split, names in classes.items() if names and all(name.isdecimal() for name in names)]
    others = [split for split, names in classes.items() if names and not any(name.isdecimal() for name in names)]
    if numbers and others:
        some, names = classes[numbers[0]], classes[others[0]]
        raise SourceError(
            f"the classes of the split {numbers[0]} are numbers ({some[0]}, ...), those of {others[0]} are names "
            f"({names[0]}, ...)",
            hint="give names in both, or the names of the numbers: classes=[...]",
        )


def _look(name: str) -> str:
    """A key that is equal for names that look alike."""
    text = name if name.isascii() else unicodedata.normalize("NFKC", clean(name)).translate(_WITHOUT_INVISIBLE)
    if _NUMBER.fullmatch(text):
        return _value(text)
    if len(text) <= 1:
        return text
    text = _SEPARATORS.sub(" ", text.casefold()).strip()
    # A name without letters and digits keeps its signs: - and __ are different, like + and *.
    return _NEEDLESS_SEPARATOR.sub("", text) or name


def _value(text: str) -> str:
    number = Decimal(text)
    # Trailing zeros are removed as text: `normalize` rounds to 28 digits, which would make long numbers equal.
    digits = format(number, "f").lstrip("+")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) if number else "0"


def _quote(name: str) -> str:
    """A name in quotes, with escapes if it is not ASCII, since it may look like another one."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"
