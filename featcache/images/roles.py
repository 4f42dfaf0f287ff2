"""Assigns roles to the columns of a table of images: image, label, split, digest, and further targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from featcache.columns import (
    LABEL,
    MOST_DEFAULT_COLUMNS,
    Choice,
    ColumnOptions,
    cell_text,
    choose,
    is_target_name,
)
from featcache.errors import SourceError
from featcache.images.omissions import Omissions, and_more
from featcache.images.splits import SplitAmbiguous, split_in

PLACES: Final = ("path", "url", "file_name", "filename", "file", "image", "image_path", "img_path", "filepath")
LABELS: Final = ("label", "labels", "class", "classes", "category", "target")
SPLIT_NAMES: Final = ("split", "subset", "partition")
DIGEST_NAMES: Final = ("sha256",)
# The names that pandas gives to a column of row numbers.
_INDEX_NAMES: Final = ("unnamed:", "__index")
#: The roles that an option after `?` can set: `photos.csv?label=species`.
OPTIONS: Final = ("image", "label", "split")


def is_role(name: str) -> bool:
    """Whether the name of a column gives its role: image, label, split or digest."""
    return name.strip().lower() in (*PLACES, *LABELS, *SPLIT_NAMES, *DIGEST_NAMES)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The role of each column.

    Args:
        image: The column of images: paths, URLs, or encoded images.
        other_image: The column of URLs, if `image` has paths, or the reverse: a row may have either.
        label, split, digest: The columns of the label, the split and the SHA-256; None if there is none.
        targets: The further targets.
        kinds: The kind of each target by name, None if it is not known.
        label_kind: The kind of the label; None if it is not known.
    """

    image: str
    other_image: str | None = None
    label: str | None = None
    split: str | None = None
    digest: str | None = None
    targets: tuple[Choice, ...] = ()
    kinds: Mapping[str, str | None]
    label_kind: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that have a role, each once."""
        named = (self.image, self.other_image, self.label, self.split, self.digest)
        return tuple(dict.fromkeys(name for name in (*named, *self.of_targets) if name is not None))

    def read(self, cells: Mapping[str, str | None]) -> RowValues:
        """Read a row from its cells, by name of the `columns`."""
        return RowValues(
            label=None if self.label is None else cell_text(cells[self.label]),
            split=None if self.split is None else cells[self.split],
            cells=[choice.cell([cells[one] for one in choice.columns]) for choice in self.targets],
        )

    @property
    def of_targets(self) -> tuple[str, ...]:
        """The columns that targets are made from."""
        return tuple(column for choice in self.targets for column in choice.columns)


class RowValues(NamedTuple):
    """The values of one image: its label, the cell of its split, and those of the other targets."""

    label: str | None
    split: str | None
    cells: list[str | None]


def find_roles(
    where: str,
    names: Sequence[str],
    options: Mapping[str, str],
    columns: ColumnOptions | None,
    omissions: Omissions,
    *,
    types: Mapping[str, str],
    image: str | None = None,
    label: str | None = None,
    without: Sequence[str] = (),
) -> Roles:
    """Find the roles of a table's columns by their names.

    Args:
        where: The name of the table in messages.
        names: The names of its columns.
        options: Columns that the user assigned to a role: image, label, split.
        columns: Which columns become targets; None: only the label.
        omissions: Receives a note on columns that are ignored.
        types: The kinds of columns that are known from their types.
        image, label: Those columns, if they are known from types.
        without: Columns that are never targets.

    Returns:
        The roles.

    Raises:
        SourceError: There is no column of images, or several columns could be the label.
        UnknownName: A requested column does not exist.
    """
    places = [name for name in names if name.strip().lower() in PLACES]
    chosen = _column_of_option(where, names, options, "image") or image or _first(places, PLACES)
    if chosen is None:
        raise SourceError(
            f"{where}: no column names or holds images; it has {', '.join(names) or 'none'}",
            hint=f"expected one named {', '.join(PLACES[:-1])} or {PLACES[-1]}, or set it: ?image=COLUMN",
        )
    labels = _column_of_option(where, names, options, "label") or label or _only_label(where, names, chosen)
    split = _column_of_option(where, names, options, "split") or _first_of(names, SPLIT_NAMES)
    digest = _first_of(names, DIGEST_NAMES)
    other = next(
        (name for name in places if name != chosen and {name.lower(), chosen.lower()} == {"path", "url"}), None
    )
    used = {chosen, other, labels, split, digest, *without}
    rest = [name for name in names if name not in used and not name.lower().startswith(_INDEX_NAMES)]
    kinds = {} if columns is None else {**types, **columns.kind_of}
    label_kind = _label_kind(labels, types, columns)
    targets = () if columns is None else _targets(where, rest, labels, columns, omissions)
    return Roles(
        image=chosen,
        other_image=other,
        label=labels,
        split=split,
        digest=digest,
        targets=targets,
        kinds={choice.name: "lists" if choice.names else kinds.get(choice.name) for choice in targets},
        label_kind=label_kind,
    )


def _label_kind(label: str | None, types: Mapping[str, str], columns: ColumnOptions | None) -> str | None:
    """The kind of the label, if requested or known from its type. A float type does not count: 1.0 may be a class."""
    if label is None or columns is None:
        return None
    requested = columns.kind_of.get(label, columns.kind_of.get(LABEL))
    by_type = types.get(label)
    return requested or (by_type if by_type != "numbers" else None)


def _targets(
    where: str, rest: Sequence[str], label: str | None, columns: ColumnOptions, omissions: Omissions
) -> tuple[Choice, ...]:
    # The label is a target anyway, under that name.
    own = {label, LABEL} - {None}
    requested = ColumnOptions(
        columns=tuple(name for name in columns.columns if name not in own),
        kinds=tuple(text for text in columns.kinds if text.rpartition("=")[0] not in own),
    )
    # A column `label` next to the one that the user chose as label would replace it.
    plain = [name for name in rest if name != LABEL and is_target_name(name)]
    default = plain if len(plain) <= MOST_DEFAULT_COLUMNS else ()
    if columns.columns and not requested.columns:
        default = ()
    taken_already = next((name for name in requested.columns if name not in rest and is_role(name)), None)
    if taken_already is not None:
        raise SourceError(
            f"{where}: the column {taken_already} gives the image, split or digest of a row, so it cannot be a target",
            hint="leave it out of --column",
        )
    chosen = choose(where, rest, requested, default=default)
    taken = {column for choice in chosen for column in choice.columns}
    # A column without a name has the row numbers.
    ignored = [name for name in rest if name and name not in taken]
    if ignored:
        omissions.note(
            f"{len(ignored)} columns are ignored: {and_more(ignored, 5)} (`--column NAME` keeps one)"
            if len(ignored) > 1
            else f"the column {ignored[0]} is ignored (`--column {_column_option(ignored[0])}` keeps it)"
        )
    return chosen


def _column_option(name: str) -> str:
    """How a column is requested with --column: under another name if its own is not valid for a target."""
    return name if is_target_name(name) and name != LABEL else f"NAME={name}"


def _column_of_option(where: str, names: Sequence[str], options: Mapping[str, str], role: str) -> str | None:
    name = options.get(role)
    if name is not None and name not in names:
        raise SourceError(f"{where}: no column {name!r}; it has {', '.join(names)}")
    return name


def _first(names: Sequence[str], known: Sequence[str]) -> str | None:
    return min(names, key=lambda name: known.index(name.strip().lower()), default=None)


def _first_of(names: Sequence[str], known: Sequence[str]) -> str | None:
    return _first([name for name in names if name.strip().lower() in known], known)


def _only_label(where: str, names: Sequence[str], image: str) -> str | None:
    found = [name for name in names if name.strip().lower() in LABELS and name != image]
    exact = [name for name in found if name.strip().lower() in ("label", "labels")]
    found = exact or found
    if len(found) > 1:
        raise SourceError(
            f"{where}: the columns {', '.join(found)} could all be the label",
            hint=f"choose one of them: {where.partition('?')[0]}?label={found[0]}",
        )
    return found[0] if found else None


def split_of_cell(cell: str | None, where: str, file_split: str | None = None) -> str:
    """The split that a cell names; for an empty cell that of the file, else train. Raises SourceError."""
    text = cell_text(cell)
    if text is None:
        return file_split or "train"
    try:
        found = split_in(text)
    except SplitAmbiguous as error:
        raise SourceError(f"{where}: {text!r} may be {' or '.join(error.splits)}", hint="name one split") from None
    if found is None:
        raise SourceError(f"{where}: expected the split train, val or test, got {text!r}")
    return found
