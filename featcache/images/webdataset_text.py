"""Parses the annotations of an image in a WebDataset tar: `.cls` is its class, `.json` its columns, `.txt` its caption.

The fields of a `.json` object become columns if they are a text, a number, a boolean or a list of these: lists are
joined with `;`, numbers and booleans are written as in Python, null is left out. Nested objects are ignored. The first
of the fields `label`, `cls` and `class` gives the class, or several classes, if there is no `.cls`.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from featcache.errors import SourceError

CLASS_FIELDS: Final = ("label", "cls", "class")
CAPTION: Final = "txt"
MOST_BYTES: Final = {"cls": 1 << 20, "txt": 1 << 20, "json": 16 << 20}
"""The kinds of annotations, and their greatest sizes in bytes; larger ones are refused."""


class Annotation(NamedTuple):
    """The annotation of one image: its class from `.cls`, its class from `.json`, and its cells by column."""

    label: str | None
    named: str | None
    cells: dict[str, str]

    def join(self, other: Annotation) -> Annotation:
        """Combine both; `other` has precedence."""
        return Annotation(other.label or self.label, other.named or self.named, self.cells | other.cells)


NOTHING: Final = Annotation(None, None, {})


def parse_annotation(kind: str, content: bytes, where: str) -> Annotation:
    """Parse the bytes of a member. Raises SourceError, naming `where`, for invalid UTF-8 or JSON."""
    try:
        text = content.decode("utf-8-sig").strip()
        if kind == "cls":
            return Annotation(text or None, None, {})
        return Annotation(None, None, {CAPTION: text}) if kind == CAPTION else _fields(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} cannot be read: {error}", hint="expected UTF-8, and JSON in .json") from error


def _fields(values: object) -> Annotation:
    if not isinstance(values, dict):
        return NOTHING
    cells = {name: cell for name, value in values.items() if name and (cell := _cell(value)) is not None}
    named = next((cells[name] for name in CLASS_FIELDS if name in cells), None)
    return Annotation(None, named or None, cells)


def _cell(value: object) -> str | None:
    if isinstance(value, list):
        items = [_text(item) for item in value if item is not None]
        # The separator after a single item distinguishes it from a class.
        end = "" if len(items) > 1 else ";"
        return None if None in items else ";".join(item for item in items if item is not None) + end
    return _text(value)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) else None
