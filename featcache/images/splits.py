"""Finds the split in a word or a name, and parses the option `--split-by-folder`."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from featcache.errors import InvalidOption, nearest
from featcache.images.options import SPLITS

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The words that name a split, in lower case."""

NO_SPLITS = "none"
FLAG = "--split-by-folder"

# Letters only: digits and signs end a word. Then `TrainImages` and `HDTrain` are divided at capitals.
_LETTERS = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+")


class SplitAmbiguous(ValueError):
    """A name contains the words of two splits, `splits`, in the order of `SPLITS`."""

    def __init__(self, name: str, splits: tuple[str, ...]) -> None:
        super().__init__(f"{name!r} names {len(splits)} splits: {', '.join(splits)}")
        self.name, self.splits = name, splits

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.name, self.splits))


def split_word(text: str) -> str | None:
    """The split whose word `text` is, in upper or lower case: "Validation" is val. None: it is no such word."""
    return SPLIT_WORDS.get(text.strip().lower())


def split_in(name: str) -> str | None:
    """The split that occurs as a word in `name`: `x_train`, `TrainImages`, `val2017`, `imagenet-val-0001`.

    Words end at any character that is not a letter, and before a capital after a small letter. A name such as
    `train_station` counts too: the caller, which sees the other names, decides whether it is a split.

    Returns:
        The split; None if no word names one.

    Raises:
        SplitAmbiguous: The words name two different splits, as in `train_val`.
    """
    found = splits_in(name)
    if len(found) > 1:
        raise SplitAmbiguous(name, found)
    return found[0] if found else None


@functools.lru_cache(maxsize=4096)
def splits_in(name: str) -> tuple[str, ...]:
    """All splits that occur as words in `name`, in the order of `SPLITS`; empty if there is none."""
    found = {split for letters in _LETTERS.findall(name) for split in _splits_of(letters)}
    return tuple(split for split in SPLITS if split in found)


def _splits_of(letters: str) -> list[str]:
    # First the whole word: eVal is eval, although its part Val is val.
    words = [letters] if split_word(letters) else _CAMEL.findall(letters)
    return [split for word in words if (split := split_word(word)) is not None]


@dataclass(frozen=True, kw_only=True)
class SplitFolders:
    """The folders that are splits, according to the user.

    Attributes:
        named: Pairs (folder, split) in the given order; a split may have several folders. Other folders are left out.
            Empty: the names of the folders decide.
        none: No folder is a split; the top folders are classes.
    """

    named: tuple[tuple[str, str], ...] = ()
    none: bool = False

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Self:
        """Parse the values of `--split-by-folder`: any number of `FOLDER=SPLIT`, or `none` alone.

        Raises:
            InvalidOption: A value without "=", without a folder or with an unknown split; a folder that is given
                twice; `none` together with other values.
        """
        texts = list(dict.fromkeys(texts))
        if texts == [NO_SPLITS]:
            return cls(none=True)
        pairs = tuple(_pair(text) for text in texts)
        _refuse_twice([folder for folder, _ in pairs])
        return cls(named=pairs)

    @property
    def automatic(self) -> bool:
        """Whether the names of the folders decide which are splits."""
        return not self.named and not self.none


BY_NAME = SplitFolders()
"""The names of the folders decide which are splits."""


def values_for(pairs: Iterable[tuple[str, str]]) -> str:
    """The options for pairs (folder, split) as text for the command line, for hints."""
    return " ".join(f"{FLAG} {_quote(folder)}={split}" for folder, split in pairs)


def same_name(name: str) -> str:
    """Normalise a folder's name for comparison: macOS stores é as two characters."""
    return unicodedata.normalize("NFC", name)


def _quote(folder: str) -> str:
    return folder if re.fullmatch(r"[\w./+-]+", folder) else f'"{folder}"'


def _pair(text: str) -> tuple[str, str]:
    if text == NO_SPLITS:
        raise InvalidOption(f"{FLAG}: `none` is given together with others", hint="give it alone, or leave it out")
    # A folder's name may contain "=", that of a split does not.
    folder, equals, word = text.rpartition("=")
    folder = folder.strip().removeprefix("./").strip("/")
    if not equals or not folder:
        raise InvalidOption(
            f"{FLAG}: expected FOLDER=SPLIT or `none`, got {text!r}", hint=f"for example {FLAG} seg_train=train"
        )
    split = split_word(word)
    if split is None:
        offer = nearest(word.strip(), SPLITS)
        raise InvalidOption(f"{FLAG} {text}: expected a split ({', '.join(SPLITS)}), got {word!r}", hint=offer)
    return folder, split


def _refuse_twice(folders: list[str]) -> None:
    names = [same_name(folder) for folder in folders]
    twice = next((folder for folder, name in zip(folders, names, strict=True) if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidOption(f"{FLAG}: the folder {twice!r} is given twice", hint="give each folder once")
