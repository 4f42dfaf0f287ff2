"""Records which files of a source are left out or ignored, so that none is left out silently."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "hidden"
BY_SYSTEM = "made by an operating system"
NO_IMAGE = "no image by its extension"
NO_SPLIT = "in a folder that is no split"

_ONE_AND_MANY = {
    HIDDEN: ("that is hidden", "that are hidden"),
    BY_SYSTEM: ("that an operating system made", "that an operating system made"),
    NO_IMAGE: ("that is no image by its extension", "that are no images by their extension"),
    NO_SPLIT: ("in a folder that is no split", "in folders that are no split"),
}
_SHOWN = 3
# Other text after a dot is not an extension: `notes.3`, `Dr. Miller`.
_EXTENSION = re.compile(r"\.(?=.*[a-z])[a-z0-9_+-]{1,10}", re.DOTALL)


class Omissions:
    """Files that are left out, counted by reason and extension with one example each, and notes on unusual readings.

    The example is the first path by code points, so the order of adding does not matter.
    """

    def __init__(self) -> None:
        # [count, first path] by (reason, extension): a list, because it may change a million times.
        self._counts: dict[tuple[str, str], list[Any]] = {}
        self._notes: dict[str, None] = {}
        self._empty: set[str] = set()

    def add(self, path: str, reason: str) -> None:
        """Add a file that is left out. `reason`: a constant of this module, or a few words that can follow "files"."""
        self._count((reason, extension_of(path)), 1, path)

    def note(self, text: str) -> None:
        """Add a sentence about something that was ignored or read in an unusual way; repeated sentences count once."""
        self._notes[text] = None

    def add_empty_folder(self, folder: str) -> None:
        """Add a class folder that contains no image."""
        self._empty.add(folder)

    @property
    def empty_folders(self) -> list[str]:
        """The class folders without an image, sorted."""
        return sorted(self._empty)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes, in the order in which they were added."""
        return tuple(self._notes)

    def merge(self, other: Omissions) -> None:
        """Add all counts and notes of `other`."""
        for key, (count, first) in other._counts.items():
            self._count(key, count, first)
        self._notes.update(other._notes)
        self._empty |= other._empty

    def _count(self, key: tuple[str, str], count: int, path: str) -> None:
        entry = self._counts.get(key)
        if entry is None:
            self._counts[key] = [count, path]
            return
        entry[0] += count
        if path < entry[1]:
            entry[1] = path

    def __len__(self) -> int:
        """The number of files that are left out."""
        return sum(count for count, _ in self._counts.values())

    def __bool__(self) -> bool:
        """Whether there is any omission or note."""
        return bool(self._counts or self._notes or self._empty)

    def sentences(self) -> list[str]:
        """Everything as sentences: one per reason, the most frequent first, then empty folders, then the notes."""
        reasons = {reason for reason, _ in self._counts}
        ordered = sorted(reasons, key=lambda reason: (-self._total(reason), reason))
        empty = [_sentence_on_folders(self.empty_folders)] if self._empty else []
        return [*map(self._sentence, ordered), *empty, *self._notes]

    def to_json(self) -> dict[str, Any]:
        """The counts with an example each, the empty folders and the notes, as JSON values."""
        return {
            "left_out": [
                {"reason": reason, "extension": extension, "files": count, "first": first}
                for (reason, extension), (count, first) in sorted(self._counts.items())
            ],
            "empty_folders": self.empty_folders,
            "notes": list(self._notes),
        }

    def _of(self, reason: str) -> dict[str, tuple[int, str]]:
        return {extension: (entry[0], entry[1]) for (one, extension), entry in self._counts.items() if one == reason}

    def _total(self, reason: str) -> int:
        return sum(count for count, _ in self._of(reason).values())

    def _sentence(self, reason: str) -> str:
        found, total = self._of(reason), self._total(reason)
        one, many = _ONE_AND_MANY.get(reason, (reason, reason))
        first = min(path for _, path in found.values())
        if total == 1:
            return f"left out: 1 file {one}: {first}"
        return f"left out: {total:,} files {many} ({_by_extension(found)}), the first is {first}"


def extension_of(path: str) -> str:
    """The extension of a path's last part with its dot, in lower case; "" where there is none."""
    name = path.rpartition("/")[2].lower()
    dot = name.rfind(".")
    return name[dot:] if dot > 0 and _EXTENSION.fullmatch(name, dot) else ""


def and_more(names: Iterable[str], shown: int = _SHOWN) -> str:
    """["a", "b", "c", "d", "e"] -> "a, b, c and 2 more". `shown`: how many names are written."""
    listed = list(names)
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more:,} more" if more > 0 else "")


def _by_extension(found: dict[str, tuple[int, str]]) -> str:
    ordered = sorted(found.items(), key=lambda item: (item[0] == "", -item[1][0], item[0]))
    shown = ", ".join(f"{count:,} {extension or 'without'}" for extension, (count, _) in ordered[:_SHOWN])
    others = sum(count for _, (count, _) in ordered[_SHOWN:])
    return shown + (f", {others:,} others" if others else "")


def _sentence_on_folders(folders: list[str]) -> str:
    count = f"{len(folders):,} class folders" if len(folders) > 1 else "1 class folder"
    return f"no images in {count}: {and_more(folders)}"
