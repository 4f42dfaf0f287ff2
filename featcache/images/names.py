"""Class names: cleaned, numbered as they are met, and refused where two of them look alike."""

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

# Characters without width: joiners, marks of direction, soft hyphens, byte order marks. Not those of emoji flags,
# without which England's and Scotland's are one.
_INVISIBLE = "".join(
    map(chr, (0x00AD, 0x061C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF))
)
_BLANK = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ENDS = _BLANK + _INVISIBLE
_WITHOUT_INVISIBLE = dict.fromkeys(map(ord, _INVISIBLE))

_SEPARATORS = re.compile(r"[\s_-]+")
# Between digits it says something: 1-2 is not 12.
_NEEDLESS_SEPARATOR = re.compile(r"(?<!\d) | (?!\d)")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# Python refuses to make a number of longer texts.
_MOST_DIGITS = sys.int_info.default_max_str_digits


def clean(name: str) -> str:
    """A class name as it is kept: composed (NFC), without blanks and invisible characters at its ends."""
    if name.isascii():
        return name.strip()
    return unicodedata.normalize("NFC", name).strip(_ENDS)


class ClassNames:
    """Gives every name a number as it is met; `in_order` says which number it has in the end.

    Names that differ only in what `clean` takes away are one class; `merged` has them.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        # Every way in which a name is written, with its number: a name is cleaned once.
        self._written: dict[str, int] = {}
        self._first: list[str] = []
        self._merged: list[tuple[str, str]] = []

    def number(self, name: str | None) -> int:
        """The number of a class so far; -1 for None, and for a name of which nothing is left."""
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
        """The names, in the order in which they were met."""
        return tuple(self._numbers)

    @property
    def merged(self) -> list[tuple[str, str]]:
        """Pairs of names that are one class though they are written in two ways; the first one met stands first."""
        return list(self._merged)

    def in_order(self, *, by_value: bool = True) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        """The names, sorted, and (n,) the place of each number among them.

        Args:
            by_value: Sort by value where all are whole numbers (2 before 10); else always by code points.
        """
        names = list(self._numbers)
        numeric = by_value and all(name.isdecimal() and len(name) < _MOST_DIGITS for name in names)
        classes = sorted(names, key=lambda name: (int(name), name) if numeric else (0, name))
        place = {name: position for position, name in enumerate(classes)}
        return tuple(classes), np.array([place[name] for name in names], np.int64)


def refuse_twins(names: Iterable[str], where: str) -> None:
    """Refuse two different names that look alike: `hot dog` and `Hot_dog`, `1` and `01`.

    Blanks, hyphens, underscores, invisible characters and letters' case do not tell names apart. The case of names
    of one character does: A and a are classes of handwriting.

    Raises:
        SourceError: Names both, as they are written.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_look(name), name)
        if other != name:
            raise SourceError(
                f"{where}: the classes {_shown(other)} and {_shown(name)} look alike; expected one name a class",
                hint="write them alike if they are one class; if they are two, give them names that differ in words",
            )


def join_classes(
    classes: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[str, ...], dict[str, npt.NDArray[np.int64]]]:
    """The classes of several splits as one list, and by split the place in it of each of its own.

    Raises SourceError for names that look alike, and for numbers beside names.
    """
    every = max(classes.values(), key=len, default=())
    if all(own == every[: len(own)] for own in classes.values()):
        return every, {split: np.arange(len(own)) for split, own in classes.items()}
    _refuse_numbers_beside_names(classes)
    met = ClassNames()
    numbers = {split: [met.number(name) for name in own] for split, own in classes.items()}
    joined, place = met.in_order()
    refuse_twins(joined, "the splits together")
    return joined, {split: place[np.array(some, np.int64)] for split, some in numbers.items()}


def _refuse_numbers_beside_names(classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse splits of which one has numbers as classes and another names: which number is which name is not said.

    Args:
        classes: Those of each split.

    Raises:
        SourceError: Names both splits.
    """
    numbers = [split for split, names in classes.items() if names and all(name.isdecimal() for name in names)]
    others = [split for split, names in classes.items() if names and not any(name.isdecimal() for name in names)]
    if numbers and others:
        some, names = classes[numbers[0]], classes[others[0]]
        raise SourceError(
            f"the classes of the split {numbers[0]} are numbers ({some[0]}, ...), those of {others[0]} names "
            f"({names[0]}, ...)",
            hint="give the names in both, or what the numbers mean: classes=[...]",
        )


def _look(name: str) -> str:
    """What two names share that look alike."""
    text = name if name.isascii() else unicodedata.normalize("NFKC", clean(name)).translate(_WITHOUT_INVISIBLE)
    if _NUMBER.fullmatch(text):
        return _value(text)
    if len(text) <= 1:
        return text
    text = _SEPARATORS.sub(" ", text.casefold()).strip()
    # A name of signs alone keeps them: - and __ are no more alike than + and *.
    return _NEEDLESS_SEPARATOR.sub("", text) or name


def _value(text: str) -> str:
    number = Decimal(text)
    # Rounding to 28 digits would make long numbers alike: trailing zeros are taken off as text.
    digits = format(number, "f").lstrip("+")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) if number else "0"


def _shown(name: str) -> str:
    """A name in quotes; with escapes where it would look like another one."""
    return repr(name) if name.isascii() else f"{name!r} ({name!a})"
