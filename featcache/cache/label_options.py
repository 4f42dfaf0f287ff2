"""The options of `featcache label`: which columns of a table become targets, and how its rows are matched to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from featcache.columns import Choice, ColumnOptions, choose
from featcache.config import Option
from featcache.errors import InvalidOption, UnknownName

On = Literal["id", "filename", "digest"]
#: How rows are matched to images, and the column names that select each way by default.
KEYS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "sample_id", "path", "url"),
    "filename": ("filename", "file_name", "file", "image", "name"),
    "digest": ("sha256", "digest"),
}
# Columns that identify an image or its split; they become no targets by default.
_NO_TARGETS = ("split", *(name for names in KEYS.values() for name in names))


@dataclass(frozen=True, kw_only=True)
class LabelOptions(ColumnOptions):
    """Which columns of a table become targets, and how its rows are matched to images.

    Raises:
        InvalidOption: A value cannot be used.
    """

    PANEL: ClassVar[str] = "Which columns"

    columns: Annotated[
        tuple[str, ...],
        Option(
            help="A column to add as a target. May be repeated. `NAME_*` makes one target of several columns of 0 and "
            "1; TARGET=PATTERN names it.",
            flags=("--column",),
            metavar="<name>",
            default="all but key, ids and split",
        ),
    ] = ()
    on: Annotated[
        On | None,
        Option(
            help="What the key is: the sample id, the image's file name with or without its ending, or the SHA-256 of "
            "its bytes.",
            default="by the key's name, else id",
        ),
    ] = None
    key: Annotated[
        str | None,
        Option(
            help="The column that identifies the image of a row.",
            metavar="<column>",
            default="id, path, filename, sha256, ...",
        ),
    ] = None
    remove: Annotated[
        tuple[str, ...], Option(help="A target to remove; may be repeated.", metavar="<name>", default="none")
    ] = ()


def choose_key(table: str, names: Sequence[str], options: LabelOptions) -> tuple[str, str]:
    """How rows are matched, and by which column. Raises UnknownName, or InvalidOption where no column fits."""
    if options.key is not None:
        if options.key not in names:
            raise UnknownName(f"column of {table}", options.key, names)
        by_name = next((on for on, known in KEYS.items() if options.key in known), "id")
        return options.on or by_name, options.key
    for on in KEYS if options.on is None else (options.on,):
        for name in names:
            if name.lower() in KEYS[on]:
                return on, name
    expected = [name for on in KEYS if options.on in (None, on) for name in KEYS[on]]
    raise InvalidOption(
        f"{table} has no column that identifies the images: expected one of {', '.join(expected)}, "
        f"got {', '.join(names) or 'none'}",
        hint="name it: --key COLUMN",
    )


def choose_columns(table: str, names: Sequence[str], key: str, options: LabelOptions) -> tuple[Choice, ...]:
    """The columns that become targets. Raises UnknownName for a missing column, InvalidOption where there is none."""
    default = tuple(name for name in names if name != key and name.lower() not in _NO_TARGETS)
    chosen = choose(table, names, options, default=default)
    if not chosen:
        raise InvalidOption(f"{table} has no column besides {', '.join(names)}", hint="name some: --column NAME")
    return chosen
