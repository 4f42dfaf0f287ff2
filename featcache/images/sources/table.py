"""Tables that name images, one path or URL per row, and single Parquet files that contain images.

    path,label,split
    photos/0001.jpg,cat,train

A table is read row by row and stored as columns, so ten million rows need little more than their names. Paths are
relative to the table's folder. A URL is downloaded whenever its image is read; with a column `sha256`, an
unchanged image need not be downloaded again.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from featcache.columns import cell_text
from featcache.errors import SourceError
from featcache.images.listing import Listing, ListingBuilder
from featcache.images.location import ImagesArgument, Location, OpenOptions, register
from featcache.images.omissions import Omissions
from featcache.images.options import SPLITS
from featcache.images.roles import OPTIONS, SPLIT_NAMES, Roles, find_roles, split_of_cell
from featcache.images.source import ImageSource, slug
from featcache.images.sources.parquet import holds_images, open_parquet_images
from featcache.images.sources.places import Digests, PlacesSource, is_url, require_scheme
from featcache.images.splits import split_word, splits_in
from featcache.images.tables import column_kinds, column_names, is_table, table_rows

_DIGEST_BYTES = 32
# Names of columns that may contain the split, or something else.
_DOUBTFUL_SPLITS = ("set", "phase", "fold")
_PROBED_ROWS = 1000


def open_table(location: Location, opening: OpenOptions) -> PlacesSource:
    """List the images that a table names.

    Raises:
        SourceError: There is no column of places, a split or digest is invalid, a row names no image, or an image
            occurs twice.
    """
    path = Path(location.place)
    names = column_names(path)
    omissions = Omissions()
    requested = _with_split(path, names, location.options)
    roles = find_roles(str(path), names, requested, opening.columns, omissions, types=column_kinds(path))
    listing, digests = _list(path, roles)
    listing.omissions.merge(omissions)
    return PlacesSource(
        name=slug(path.stem), origin=location.origin, listing=listing, folder=path.parent, digests=digests
    )


def _with_split(path: Path, names: Sequence[str], options: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The options, with a column such as `set` or `phase` as the split if its first cells name splits."""
    requested = dict(options)
    doubtful = [name for name in names if name.strip().lower() in _DOUBTFUL_SPLITS]
    if "split" in requested or not doubtful or any(name.strip().lower() in SPLIT_NAMES for name in names):
        return requested
    first = list(itertools.islice(table_rows(path, doubtful), _PROBED_ROWS))
    for name, cells in zip(doubtful, zip(*first, strict=True), strict=False):
        if all(split_word(cell or "") for cell in cells):
            return {**requested, "split": name}
    return requested


def _list(path: Path, roles: Roles) -> tuple[Listing, dict[str, Digests]]:
    builder = ListingBuilder(dict(roles.kinds))
    digests = {split: array("B") for split in SPLITS}
    file_split = next(iter(found), None) if len(found := splits_in(path.stem)) == 1 else None
    for number, row in enumerate(table_rows(path, roles.columns), start=2):
        where, cells = f"{path} row {number}", dict(zip(roles.columns, row, strict=True))
        values = roles.read(cells)
        split = split_of_cell(values.split, where, file_split)
        builder.add(split, _place(cells, roles, where), values.label, values.cells)
        if roles.digest is not None:
            digests[split].frombytes(_digest(cells[roles.digest], where))
    if not len(builder):
        raise SourceError(f"{path}: no rows", hint="expected a line of column names, then a row for each image")
    builder.note_shared()
    listing = builder.listing(str(path), label_kind=roles.label_kind)
    if roles.digest is None:
        return listing, {}
    return listing, {
        name: np.frombuffer(digests[name], np.uint8).reshape(-1, _DIGEST_BYTES)[samples.rows_in_listing]
        for name, samples in listing.samples.items()
    }


def _place(cells: Mapping[str, str | None], roles: Roles, where: str) -> str:
    names = (roles.image, roles.other_image)
    found = next((cells[one] for one in names if one is not None and cell_text(cells[one])), None)
    if not found:
        raise SourceError(f"{where}: names no image", hint="expected a path or a URL in each row")
    require_scheme(found, where)
    place = found.strip()
    # Normalised, so that a second row of the same image is detected.
    return place if is_url(place) or not ("./" in place or "//" in place) else str(PurePosixPath(place))


def _digest(cell: str | None, where: str) -> bytes:
    text = cell_text(cell)
    if text is None:
        return bytes(_DIGEST_BYTES)
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _DIGEST_BYTES:
        raise SourceError(f"{where}: expected a sha256 of 64 hexadecimal digits, got {text!r}")
    return found


def _locate(given: ImagesArgument) -> Location | None:
    if not (given.is_text and is_table(given.path) and given.is_file):
        return None
    return given.at("table", options=OPTIONS)


@register("table", rank=50, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> ImageSource:
    path = Path(location.place)
    if holds_images(path, location.option("image")):
        return open_parquet_images(location, opening, [path])
    return open_table(location, opening)
