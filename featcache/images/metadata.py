"""Lists the images of a folder or an archive, with the columns of metadata tables in it.

A file named metadata.csv, .jsonl or .parquet describes the images below its folder, as in Hugging Face's imagefolder:
a column `file_name` with paths relative to the table, and any other columns. If the table has a label, it is that of
the images; else the folder names are.
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
    """The content of a folder or an archive, as POSIX paths inside it.

    Args:
        images: Files with the name of an image.
        tables: Metadata tables that describe them.
        folders: Folders, to find those without an image.
        omissions: What is left out.
    """

    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    omissions: Omissions = field(default_factory=Omissions)


def is_metadata(path: str) -> bool:
    """Whether a file has the name of a metadata table."""
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
    """List a folder or an archive.

    Args:
        tree: Its content.
        where: Its name in messages.
        split_by_folder: FOLDER=SPLIT, or `none`.
        columns: Which columns of tables become targets; None: only the label.
        read_table: Opens a table of the tree.

    Returns:
        The prefix of each sample's id in the tree, and the listing.

    Raises:
        SourceError: There are no images, or their layout can be read in two ways.
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
    tables = [_MetadataTable.of(path, table, names, columns, omissions) for path, table in opened.items()]
    requested = () if columns is None else (*columns.columns, *(name for name in columns.kind_of if name != LABEL))
    if requested and not tables:
        raise SourceError(
            f"{where} has no column {requested[0]!r}: folder names give only the label",
            hint="put a metadata.csv with a column file_name next to the images, or add columns with `featcache label`",
        )
    builder = _build(layout, tables)
    builder.omissions.merge(omissions)
    labelled = [table for table in tables if table.has_labels]
    requested_kind = None if columns is None else columns.kind_of.get(LABEL)
    label_kind = labelled[0].roles.label_kind if labelled else requested_kind or "classes"
    # Folder names are sorted as torchvision's ImageFolder sorts them: 10 before 2.
    return layout.prefix, builder.listing(where, label_kind=label_kind, by_value=bool(labelled))


@dataclass(kw_only=True, eq=False)
class _MetadataTable:
    """A metadata table: the label, split and other cells of each image, by its path in the tree."""

    path: str
    roles: Roles
    rows: dict[str, RowValues]
    used: set[str] = field(default_factory=set)

    @functools.cached_property
    def has_labels(self) -> bool:
        """Whether it has a label column with at least one value."""
        return self.roles.label is not None and any(row.label is not None for row in self.rows.values())

    def has_label_of(self, path: str) -> bool:
        """Whether this table defines the label of an image: it has labels, and the image is below its folder."""
        folder = self.path.rpartition("/")[0]
        return self.has_labels and (not folder or path.startswith(f"{folder}/"))

    @classmethod
    def of(
        cls, path: str, table: Table, names: Sequence[str], columns: ColumnOptions | None, omissions: Omissions
    ) -> _MetadataTable:
        """Read a table. `names`: the columns of all tables; a column that this table lacks has no values."""
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

    def row_of(self, path: str) -> RowValues | None:
        """The row of an image, which is marked as used; None if there is none."""
        row = self.rows.get(path)
        if row is not None:
            self.used.add(path)
        return row


def _build(layout: Layout, tables: Sequence[_MetadataTable]) -> ListingBuilder:
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
            found = table.row_of(path)
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


def _kinds_of(tables: Sequence[_MetadataTable]) -> dict[str, str | None]:
    """The kind of each column: that of the first table that knows it, None if none does."""
    kinds: dict[str, str | None] = {}
    for table in tables:
        for name, kind in table.roles.kinds.items():
            kinds[name] = kinds.get(name) or kind
    return kinds


def _note(omissions: Omissions, tables: Sequence[_MetadataTable], unnamed: int) -> None:
    for table in tables:
        missing = [name for name in table.rows if name not in table.used]
        if missing:
            omissions.note(
                f"rows of {table.path} whose image does not exist: {len(missing):,}, the first is {min(missing)}"
            )
    labelled = [table.path for table in tables if table.has_labels]
    if labelled:
        omissions.note(f"labels are read from {', '.join(labelled)}")
    if unnamed:
        omissions.note(f"images that are in no table, and so have no values: {unnamed:,}")
