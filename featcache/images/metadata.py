"""The images of a folder or an archive, with what a table beside them knows of each.

A file called metadata.csv, .jsonl or .parquet describes the images below its folder, as Hugging Face's imagefolder has
it: a column `file_name` with paths relative to it, and any others. Its label, where it has one, is that of the images;
names of folders count where it has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from featcache.columns import LABEL, ColumnOptions, cell_text
from featcache.errors import SourceError
from featcache.images.layout import Layout, arrange
from featcache.images.listing import Listing, ListingBuilder
from featcache.images.omissions import Omissions
from featcache.images.roles import Roles, RowValues, find_roles, is_role, split_of_cell
from featcache.images.splits import SplitFolders
from featcache.images.tables import Table, column_kinds, column_names, table_rows

_NAME = "metadata"
_SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(kw_only=True)
class Tree:
    """What is found in a folder or an archive, as POSIX paths inside it.

    Args:
        images: Files that are images by their names.
        tables: Tables that describe them.
        folders: Folders, so that those without an image are known.
        omissions: What is left out.
    """

    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    omissions: Omissions = field(default_factory=Omissions)


def is_metadata(path: str) -> bool:
    """Whether a file describes the images below its folder, by its name."""
    name = PurePosixPath(path)
    return name.stem.lower() == _NAME and name.suffix.lower() in _SUFFIXES


def list_tree(
    tree: Tree,
    where: str,
    *,
    split_by_folder: Sequence[str],
    columns: ColumnOptions | None,
    read_table: Callable[[str], Table],
) -> tuple[str, Listing]:
    """The listing of a folder or an archive.

    Args:
        tree: What is in it.
        where: Names it in messages.
        split_by_folder: FOLDER=SPLIT, or `none`.
        columns: Which columns of tables become targets; None: the label alone.
        read_table: Opens a table of the tree.

    Returns:
        The prefix that stands before each sample's id in the tree, and the listing.

    Raises:
        SourceError: There are no images, or they can be read in two ways.
        UnknownName: A column that no table has.
    """
    layout = arrange(tree.images, where, splits=SplitFolders.parse(split_by_folder))
    omissions = tree.omissions
    for note in layout.notes:
        omissions.note(note)
    omissions.merge(layout.omissions)
    for folder in layout.without_images(tree.folders):
        omissions.add_empty_folder(folder)
    opened = {path: read_table(path) for path in sorted(tree.tables)}
    names = tuple(dict.fromkeys(name for table in opened.values() for name in column_names(table)))
    tables = [_Described.of(path, table, names, columns, omissions) for path, table in opened.items()]
    asked = () if columns is None else (*columns.columns, *(name for name in columns.kind_of if name != LABEL))
    if asked and not tables:
        raise SourceError(
            f"{where} has no column {asked[0]!r}: folders tell the label alone",
            hint="put a metadata.csv with a column file_name beside the images, or add columns with `featcache label`",
        )
    builder = _build(layout, tables)
    builder.omissions.merge(omissions)
    labelled = [table for table in tables if table.has_labels]
    asked_kind = None if columns is None else columns.kind_of.get(LABEL)
    label_kind = labelled[0].roles.label_kind if labelled else asked_kind or "classes"
    # Folders are sorted as torchvision's ImageFolder does it: 10 before 2.
    return layout.prefix, builder.listing(where, label_kind=label_kind, by_value=bool(labelled))


@dataclass(kw_only=True, eq=False)
class _Described:
    """A table and what it says of each image by its path in the tree: label, split, other cells."""

    path: str
    roles: Roles
    rows: dict[str, RowValues]
    used: set[str] = field(default_factory=set)

    @functools.cached_property
    def has_labels(self) -> bool:
        """Whether it has a label, which at least one row fills."""
        return self.roles.label is not None and any(row.label is not None for row in self.rows.values())

    def has_label_of(self, path: str) -> bool:
        """Whether the label of an image is its own to say: it lies below the table's folder."""
        folder = self.path.rpartition("/")[0]
        return self.has_labels and (not folder or path.startswith(f"{folder}/"))

    @classmethod
    def of(
        cls, path: str, table: Table, names: Sequence[str], columns: ColumnOptions | None, omissions: Omissions
    ) -> _Described:
        """`names`: the columns of all tables; one that this table lacks has no values in it."""
        own = column_names(table)
        foreign = [name for name in names if name not in own and not is_role(name)]
        roles = find_roles(path, [*own, *foreign], {}, columns, omissions, types=column_kinds(table))
        folder = PurePosixPath(path).parent
        rows: dict[str, RowValues] = {}
        for number, row in enumerate(table_rows(table, roles.columns), start=2):
            cells = dict(zip(roles.columns, row, strict=True))
            name = cell_text(cells[roles.image])
            if name is None:
                raise SourceError(f"{path} row {number}: names no image", hint="expected a path in each row")
            inside = str(folder / name.replace("\\", "/"))
            if inside in rows:
                raise SourceError(f"{path} row {number}: the image {name} is listed twice")
            rows[inside] = roles.read(cells)
        return cls(path=path, roles=roles, rows=rows)

    def about(self, path: str) -> RowValues | None:
        """What it says of an image; None where it does not name it."""
        found = self.rows.get(path)
        if found is not None:
            self.used.add(path)
        return found


def _build(layout: Layout, tables: Sequence[_Described]) -> ListingBuilder:
    builder = ListingBuilder(kinds := _kinds_of(tables))
    if not tables:
        for row in layout.rows:
            builder.add(*row)
        return builder
    unnamed = 0
    for split, name, folder_class in layout.rows:
        cells: dict[str, str | None] = {}
        path = layout.prefix + name
        label = None if any(table.has_label_of(path) for table in tables) else folder_class
        named = False
        for table in tables:
            found = table.about(path)
            if found is None:
                continue
            named = True
            label = label if found.label is None else found.label
            split = split_of_cell(found.split, table.path, split)
            cells |= {
                column: cell for column, cell in zip(table.roles.kinds, found.cells, strict=True) if cell is not None
            }
        unnamed += not named
        builder.add(split, name, label, [cells.get(column) for column in kinds])
    _note(builder.omissions, tables, unnamed)
    return builder


def _kinds_of(tables: Sequence[_Described]) -> dict[str, str | None]:
    """What the columns hold, where one table says it and no other says something else."""
    kinds: dict[str, str | None] = {}
    for table in tables:
        for name, kind in table.roles.kinds.items():
            kinds[name] = kinds.get(name) or kind
    return kinds


def _note(omissions: Omissions, tables: Sequence[_Described], unnamed: int) -> None:
    for table in tables:
        missing = [name for name in table.rows if name not in table.used]
        if missing:
            omissions.note(
                f"rows of {table.path} that name no image here: {len(missing):,}, the first is {min(missing)}"
            )
    labelled = [table.path for table in tables if table.has_labels]
    if labelled:
        omissions.note(f"labels are those of {', '.join(labelled)}")
    if unnamed:
        omissions.note(f"images that no table names, and that have no values: {unnamed:,}")
