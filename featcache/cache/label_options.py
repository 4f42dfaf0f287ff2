"""The options of `featcache label`: which columns of a table become targets, and how its rows find their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from featcache.config import Option, check
from featcache.errors import InvalidOption, UnknownName, nearest

#: What a target may hold; `cache.targets` says how.
KINDS = ("classes", "lists", "numbers", "groups", "text")
On = Literal["id", "filename", "digest"]
#: By what rows are matched: the names of columns that say so by themselves.
KEYS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "sample_id", "path", "url"),
    "filename": ("filename", "file_name", "file", "image", "name"),
    "digest": ("sha256", "digest"),
}
# Columns of a table of images that say nothing about an image.
_NO_TARGETS = ("split", *(name for names in KEYS.values() for name in names))


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Which columns of a table become targets, and how its rows find their images. Raises InvalidOption."""

    PANEL: ClassVar[str] = "Which columns"

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
            help="The column that says which image a row is about.",
            metavar="<column>",
            default="id, path, filename, sha256, ...",
        ),
    ] = None
    columns: Annotated[
        tuple[str, ...],
        Option(help="A column to add; may be repeated.", flags=("--column",), metavar="<name>", default="all"),
    ] = ()
    kinds: Annotated[
        tuple[str, ...],
        Option(
            help="What a column holds: classes, lists (several classes, `a;b`), numbers, groups or text; may be "
            "repeated.",
            flags=("--kind",),
            metavar="<name>=<kind>",
            default="found by its cells; groups are never found",
        ),
    ] = ()
    remove: Annotated[
        tuple[str, ...], Option(help="A target to remove; may be repeated.", metavar="<name>", default="none")
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        for name, kind in self.kind_of.items():
            if kind not in KINDS:
                raise InvalidOption(
                    f"expected --kind {name}={', '.join(KINDS[:-1])} or {KINDS[-1]}, got {name}={kind}",
                    hint=nearest(kind, KINDS),
                )

    @property
    def kind_of(self) -> dict[str, str]:
        """The kind of each column whose kind is said."""
        pairs = [text.rpartition("=") for text in self.kinds]
        if any(not name for name, _, _ in pairs):
            raise InvalidOption(f"expected --kind NAME=KIND, got {' '.join(self.kinds)}")
        return {name: kind for name, _, kind in pairs}


def choose_key(table: str, names: Sequence[str], options: LabelOptions) -> tuple[str, str]:
    """By what rows are matched, and the column that says it. Raises UnknownName, InvalidOption where none does."""
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
        f"{table} has no column that says which image a row is about: expected one of {', '.join(expected)}, "
        f"got {', '.join(names) or 'none'}",
        hint="name it: --key COLUMN",
    )


def choose_columns(table: str, names: Sequence[str], key: str, options: LabelOptions) -> tuple[str, ...]:
    """The columns that become targets. Raises UnknownName for one that is not there, InvalidOption for none."""
    for name in (*options.columns, *options.kind_of):
        if name not in names:
            raise UnknownName(f"column of {table}", name, names)
    chosen = options.columns or tuple(name for name in names if name != key and name.lower() not in _NO_TARGETS)
    if not chosen:
        raise InvalidOption(f"{table} has no column besides {', '.join(names)}", hint="name some: --column NAME")
    stray = sorted(set(options.kind_of) - set(chosen))
    if stray:
        raise InvalidOption(f"--kind is said of {', '.join(stray)}, which is not added", hint="add --column for it")
    return tuple(dict.fromkeys(chosen))
