"""Targets: the labels of the images, and other columns: classes, lists of classes, numbers, groups and texts.

A column describes a target for the whole cache (name, kind, names, origin); a target is a column with the values of
some rows. `label` is the column that comes with the images; `featcache label` adds others. Values are stored apart
from the features and are not part of a cache's identity, so changing them computes no features.

    kind      values              no value   names
    classes   int64 (N,)          -1         those of the classes; a value is an index into them
    lists     int8 (N, C), 0/1    all -1     those of the classes; an image may have several
    numbers   float64 (N,)        NaN        none
    groups    int64 (N,)          -1         those of the groups; images of one group must not be separated
    text      UTF-8 bytes (N,)    empty      none
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.rows import Rows
from featcache.cache.spec import Json
from featcache.cache.tables import encode_texts
from featcache.columns import KINDS, LABEL, MOST_CLASSES, SEPARATOR, cell_text, infer_kind, is_target_name, number_in
from featcache.errors import CacheForeign, InvalidOption

#: The origin of a column that comes with the images: their folders, or their table.
IMAGES = "images"
#: The HDF5 group of a split's targets.
GROUP = "targets"
MOST_COLUMNS = 1_000
_NAMED = ("classes", "lists", "groups")
_STORED = {"classes": "<i8", "lists": "|i1", "numbers": "<f8", "groups": "<i8"}
#: The stored dtypes of all kinds but text.
STORED_TYPES = tuple(dict.fromkeys(_STORED.values()))

Values = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """The description of a target, for the whole cache.

    Args:
        name: Its name: 1 to 200 printable characters without a slash.
        kind: One of KINDS.
        names: The names of its classes or groups; a value is an index into them.
        origin: Where its values come from: "images", or the name of a table.

    Raises:
        InvalidOption: A value cannot be used.
    """

    name: str
    kind: str
    names: tuple[str, ...] = ()
    origin: str = IMAGES

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and is_target_name(self.name)):
            raise InvalidOption(
                f"a target cannot be called {self.name!r}",
                hint="use 1 to 200 printable characters, no slash, not `.` or `..`",
            )
        if self.kind not in KINDS:
            raise InvalidOption(f"target {self.name}: expected a kind among {', '.join(KINDS)}, got {self.kind!r}")
        object.__setattr__(self, "names", tuple(self.names))
        if not all(isinstance(name, str) for name in (*self.names, self.origin)):
            raise InvalidOption(f"target {self.name}: expected names and an origin that are text")
        if self.names and self.kind not in _NAMED:
            raise InvalidOption(f"target {self.name}: {self.kind} have no names, got {len(self.names)}")

    def to_json(self) -> dict[str, Json]:
        """The mapping that is stored as JSON."""
        return {"name": self.name, "kind": self.kind, "names": list(self.names), "origin": self.origin}

    def shape(self, rows: int) -> tuple[int, ...]:
        """The shape of its values."""
        return (rows, len(self.names)) if self.kind == "lists" else (rows,)

    def dtype(self, text_bytes: int = 1) -> str:
        """The stored dtype of its values, as NumPy writes it; `text_bytes`: the length of the longest text."""
        return _STORED.get(self.kind, f"|S{text_bytes}")

    def missing(self, rows: int) -> Values:
        """The values of `rows` images without a value."""
        nothing = {"numbers": np.nan, "text": b""}.get(self.kind, -1)
        return np.full(self.shape(rows), nothing, self.dtype())


def label_column(classes: Sequence[str]) -> Column:
    """The target `label` of images with these classes."""
    return Column(name=LABEL, kind="classes", names=tuple(classes))


def label_in(columns: Sequence[Column]) -> Column | None:
    """The target `label`; None where there is none.

    Raises InvalidOption where it does not hold classes.
    """
    found = next((column for column in columns if column.name == LABEL), None)
    if found is not None and found.kind != "classes":
        raise InvalidOption(
            f"the target {LABEL} holds {found.kind}, expected classes",
            hint=f"add it again with `featcache label ... --kind {LABEL}=classes`",
        )
    return found


def array_name(split: str, column: str) -> str:
    """The name of the array of a split's values of a target."""
    return f"{split}/{GROUP}/{column}"


def is_target_array(name: str) -> bool:
    """Whether an array holds the values of a target."""
    return name.split("/")[1] == GROUP


def columns_to_json(columns: Sequence[Column]) -> str:
    """The root attribute `targets`."""
    return json.dumps([column.to_json() for column in columns])


def columns_of(texts: Mapping[str, str]) -> tuple[Column, ...]:
    """The columns that the root attribute `targets` describes. Raises CacheForeign."""
    try:
        described = json.loads(texts[GROUP])
        columns = tuple(Column(**one) for one in described)
    except InvalidOption as error:
        raise CacheForeign(f"its attribute {GROUP}: {error.message}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"featcache did not write its attribute {GROUP}: {error}") from error
    if type(described) is not list or len({one.name for one in columns}) != len(columns) or len(columns) > MOST_COLUMNS:
        raise CacheForeign(
            f"its attribute {GROUP}: expected a list of at most {MOST_COLUMNS:,} targets with different names"
        )
    return columns


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A column and its values for some rows.

    Args:
        column: Its description.
        values: One for each row; see the table at the top of this module.

    Raises:
        InvalidOption: The values do not have the dtype and shape of the column's kind, or are no indices into its
            names.
    """

    column: Column
    values: Values

    def __post_init__(self) -> None:
        values, column = np.asarray(self.values), self.column
        wanted = np.dtype(column.dtype(max(1, values.dtype.itemsize)))
        integers = column.kind in ("classes", "groups", "lists") and (values.dtype.kind in "iu" or not values.size)
        if values.shape != column.shape(len(values) if values.ndim else 0) or not (integers or values.dtype == wanted):
            expected = f"{wanted.name} {column.shape(len(values) if values.ndim else 0)}"
            raise InvalidOption(f"target {self.name}: expected {expected}, got {values.dtype.name} {values.shape}")
        require_codes(column, values)
        object.__setattr__(self, "values", values.astype(wanted, copy=False))

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.column.kind

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its classes or groups."""
        return self.column.names

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_value(self) -> npt.NDArray[np.bool_]:
        """Which rows have a value: bool (N,)."""
        if self.kind == "numbers":
            return ~np.isnan(self.values)
        if self.kind == "text":
            return np.asarray(self.values != b"")
        if self.kind == "lists":
            # A row of zeros is a value: none of the classes.
            return np.asarray(np.all(self.values >= 0, axis=1), np.bool_) & bool(self.names)
        return np.asarray(self.values >= 0)

    @property
    def unlabelled(self) -> int:
        """How many rows have no value."""
        return len(self) - int(np.count_nonzero(self.has_value))

    def at(self, rows: Rows) -> Target:
        """The values of these rows (n,), in that order; -1 gives no value."""
        found = self.column.missing(len(rows))
        if self.kind == "text":
            found = found.astype(self.values.dtype)
        found[rows >= 0] = self.values[rows[rows >= 0]]
        return Target(column=self.column, values=found)

    def decode(self) -> list[Any]:
        """The values as Python objects: a name, a tuple of names, a number or a text; None where there is none."""
        there = self.has_value.tolist()
        return [self._decode(value) if known else None for value, known in zip(self.values, there, strict=True)]

    def _decode(self, value: Any) -> Any:
        if self.kind == "numbers":
            return float(value)
        if self.kind == "text":
            return bytes(value).decode("utf-8", "surrogateescape")
        if self.kind == "lists":
            return tuple(self.names[code] for code in np.flatnonzero(value).tolist())
        return self.names[value]


def target_from_file(column: Column, values: Values, where: str) -> Target:
    """A target with values from a file, which `where` names. Raises CacheForeign for values that do not fit."""
    try:
        return Target(column=column, values=values)
    except InvalidOption as error:
        raise CacheForeign(f"{where}: {error.message}") from error


def require_codes(column: Column, values: Values) -> None:
    """Raise InvalidOption if a value is no code of a name of its column."""
    if column.kind not in _NAMED or not values.size:
        return
    low, high = int(values.min()), int(values.max())
    most = 1 if column.kind == "lists" else len(column.names) - 1
    if low < -1 or high > most:
        raise InvalidOption(f"target {column.name}: expected values from -1 to {most}, got {low} to {high}")
    if column.kind == "lists" and low < 0 and not ((values < 0).all(axis=1) | (values >= 0).all(axis=1)).all():
        raise InvalidOption(f"target {column.name}: expected -1 in all classes of an image or in none")


# --- from the cells of a table -----------------------------------------------------------------------------


def encode(name: str, cells: Sequence[object], *, kind: str | None = None, origin: str = IMAGES) -> Target:
    """Make a target of the cells of a column. A cell that is None, NaN, empty or `nan` is no value.

    Args:
        name: What the target is called.
        cells: Texts or numbers, one for each row; they are read several times.
        kind: One of KINDS; None: inferred from name and cells (`columns.infer_kind`).
        origin: Where the cells come from.

    Returns:
        The target. The names of its classes or groups are sorted; in a cell of lists they are separated by `;`.

    Raises:
        InvalidOption: A cell is no number where numbers are expected, or the name or kind cannot be used.
    """
    texts = _Texts(cells)
    chosen = infer_kind(name, cells) if kind is None else kind
    column = Column(name=name, kind=chosen, origin=origin)
    if chosen == "numbers":
        return Target(column=column, values=_numbers(name, texts))
    if chosen == "text":
        return Target(column=column, values=encode_texts(f"target {name}", _Texts(cells, instead="")))
    if chosen == "lists":
        return _lists(column, texts)
    names = sorted({text for text in texts if text is not None})
    code: dict[str | None, int] = {text: number for number, text in enumerate(names)}
    codes = np.fromiter((code.get(text, -1) for text in texts), np.int64, len(texts))
    return Target(column=replace(column, names=tuple(names)), values=codes)


class _Texts(Sequence[Any]):
    """Cells as texts, converted each time they are read: ten million texts would take a gigabyte of memory."""

    def __init__(self, cells: Sequence[object], instead: str | None = None) -> None:
        """`instead`: the value of an empty cell."""
        self._cells, self._instead = cells, instead

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: Any) -> Any:
        text = cell_text(self._cells[index])
        return self._instead if text is None else text

    def __iter__(self) -> Iterator[Any]:
        for cell in self._cells:
            text = cell_text(cell)
            yield self._instead if text is None else text


def _numbers(name: str, texts: _Texts) -> Values:
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        if text is None:
            continue
        number = number_in(text)
        if number is None:
            raise InvalidOption(
                f"target {name}: expected numbers, got {text!r}", hint=f"--kind {name}=classes, or another kind"
            )
        values[row] = number
    return values


def _lists(column: Column, texts: _Texts) -> Target:
    named: dict[str, None] = {}
    has_cells = False
    for text in texts:
        has_cells = has_cells or text is not None
        named |= dict.fromkeys(_items(text))
    names = sorted(named)
    if not names and has_cells:
        raise InvalidOption(f"target {column.name}: expected at least one class in a cell, got none")
    if len(names) > MOST_CLASSES:
        raise InvalidOption(
            f"target {column.name}: {len(names):,} classes in lists, at most {MOST_CLASSES:,} are supported",
            hint=f"choose the columns to use (--column), or --kind {column.name}=text",
        )
    code = {text: number for number, text in enumerate(names)}
    column = replace(column, names=tuple(names))
    values = column.missing(len(texts))
    for row, text in enumerate(texts):
        if text is not None:
            values[row] = 0
            values[row, [code[one] for one in _items(text)]] = 1
    return Target(column=column, values=values)


def _items(text: str | None) -> list[str]:
    """The classes in a cell."""
    return [] if text is None else [one for one in map(str.strip, text.split(SEPARATOR)) if one]


# --- the same images in another order ----------------------------------------------------------------------


def rows_by_id(have: npt.NDArray[np.bytes_], want: npt.NDArray[np.bytes_]) -> Rows:
    """For each wanted id the first row with that id: int64 (n,), -1 where there is none; equal arrays match row by row.

    Args:
        have: (m,) ids, UTF-8 of fixed length; may repeat.
        want: (n,) the same, of any length.
    """
    if not len(have) or not len(want):
        return np.full(len(want), -1, np.int64)
    if len(have) == len(want) and np.array_equal(have, want):
        return np.arange(len(want))
    order = np.argsort(have, kind="stable")
    place = np.searchsorted(have, want, sorter=order)
    place[place == len(have)] = 0
    found = order[place]
    return np.where(have[found] == want, found, -1)
