"""What stands beside an image in a WebDataset tar: `.cls` is its class, `.json` its columns, `.txt` its caption.

The fields of a `.json` object that are a text, a number, true or false, or a list of these, are columns: lists joined
with `;`, numbers and truth values as Python writes them, null left out. Objects within are no columns. The first of
its fields `label`, `cls` and `class` names the class, or the classes, where no `.cls` does.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from featcache.errors import SourceError

CLASS_FIELDS: Final = ("label", "cls", "class")
CAPTION: Final = "txt"
MOST_BYTES: Final = {"cls": 1 << 20, "txt": 1 << 20, "json": 16 << 20}
"""The kinds of members that are read beside images, and the size beyond which one is refused."""


class Beside(NamedTuple):
    """What is known of one image: its class by `.cls`, its class by `.json`, and its cells by column."""

    label: str | None
    named: str | None
    cells: dict[str, str]

    def join(self, other: Beside) -> Beside:
        """Both; what `other` says counts."""
        return Beside(other.label or self.label, other.named or self.named, self.cells | other.cells)


NOTHING: Final = Beside(None, None, {})


def parse_beside(kind: str, content: bytes, where: str) -> Beside:
    """What the member's bytes say. Raises SourceError, naming `where`, for bytes that are no UTF-8 and no JSON."""
    try:
        text = content.decode("utf-8-sig").strip()
        if kind == "cls":
            return Beside(text or None, None, {})
        return Beside(None, None, {CAPTION: text}) if kind == CAPTION else _fields(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} cannot be read: {error}", hint="expected UTF-8, and JSON in .json") from error


def _fields(values: object) -> Beside:
    if not isinstance(values, dict):
        return NOTHING
    cells = {name: cell for name, value in values.items() if name and (cell := _cell(value)) is not None}
    named = next((cells[name] for name in CLASS_FIELDS if name in cells), None)
    return Beside(None, named or None, cells)


def _cell(value: object) -> str | None:
    if isinstance(value, list):
        items = [_text(item) for item in value if item is not None]
        # One item alone would look like a class.
        end = "" if len(items) > 1 else ";"
        return None if None in items else ";".join(item for item in items if item is not None) + end
    return _text(value)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) else None
