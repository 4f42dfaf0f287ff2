"""`hf:NAME`: data sets of the Hugging Face Hub, through the package datasets.

    hf:uoft-cs/cifar10
    hf:uoft-cs/cifar100?label=fine_label      chooses one of several label columns; ?config= chooses a subset

An image's id is its split and row: "train/00012". Splits are train, val (validation, dev) and test; others are left
out, with a note. Parquet files need neither the package nor a network: `sources.parquet`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from featcache.errors import DownloadError, ImageError, MissingExtra, SourceError
from featcache.images.listing import ListingBuilder
from featcache.images.location import ImagesArgument, Location, OpenOptions, register
from featcache.images.omissions import Omissions
from featcache.images.options import SPLITS
from featcache.images.roles import OPTIONS, Roles, find_roles
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Stamp, row_ids
from featcache.images.sources.parquet import PREFIX, image_bytes, refuse_several
from featcache.images.splits import SplitAmbiguous, split_in
from featcache.images.tables import cells_of

_KINDS: Final = {"float16": "numbers", "float32": "numbers", "float64": "numbers"}


class HubSource(ImageSource):
    """The rows of tables of the package datasets, one table per split. They are memory-mapped, so rows are read singly.

    Args:
        tables: The table of each split.
        roles: The roles of their columns.
        classes: The class names of the label, if the set has them.
        name, origin: As in `ImageSource`.
        omissions: What was left out so far.
    """

    def __init__(
        self,
        tables: Mapping[str, Any],
        roles: Roles,
        *,
        classes: tuple[str, ...] | None,
        name: str,
        origin: str,
        omissions: Omissions,
    ) -> None:
        builder = ListingBuilder(dict(roles.kinds), classes)
        builder.omissions.merge(omissions)
        for split, table in tables.items():
            _add_rows(builder, split, table, roles)
        if not len(builder):
            raise SourceError(f"{origin}: no rows")
        listing = builder.listing(origin, label_kind=roles.label_kind)
        super().__init__(name=name, origin=origin, listing=listing)
        self._image = roles.image
        self._tables = {split: _column_of_images(table, roles.image) for split, table in tables.items() if len(table)}
        # If rows only name files, these may change while the table stays the same.
        self._whole = {split: _holds_all(table, roles.image) for split, table in self._tables.items()}
        self._fingerprints = {split: str(tables[split]._fingerprint) for split in self._tables}

    def read(self, sample: Sample) -> bytes:
        """Read the encoded image. Raises ImageError for a row that does not exist, is empty or cannot be read."""
        return image_bytes(self._tables[sample.split][self._number(sample)][self._image], sample.id, Path())

    def stamp(self, sample: Sample) -> Stamp | None:
        """("hf", the table's fingerprint, the row) if the images are in the table itself; else None."""
        if not self._whole.get(sample.split):
            return None
        return ("hf", self._fingerprints[sample.split], self._number(sample))

    def _number(self, sample: Sample) -> int:
        try:
            return self._listing.samples[sample.split].find(sample.id)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None


def _add_rows(builder: ListingBuilder, split: str, table: Any, roles: Roles) -> None:
    found = {name: _cells(table, name) for name in roles.columns if name != roles.image}
    for row, sample_id in enumerate(row_ids(split, range(len(table)), len(table))):
        values = roles.read({name: cells[row] for name, cells in found.items()})
        builder.add(split, sample_id, values.label, values.cells)


def _cells(table: Any, name: str) -> list[str | None]:
    values = table.select_columns([name]).with_format("arrow")[:].column(0).to_pylist()
    return cells_of(values, getattr(table.features[name], "names", None), f"the column {name}")


def _column_of_images(table: Any, image: str) -> Any:
    """The column of images, without decoding."""
    pictures = table.select_columns([image])
    kind = pictures.features[image]
    return pictures.cast_column(image, type(kind)(decode=False)) if type(kind).__name__ == "Image" else pictures


def _holds_all(table: Any, image: str) -> bool:
    """Whether every row contains the bytes of its image, instead of the path of a file."""
    for chunk in table.data.column(image).chunks:
        held = chunk.field("bytes") if chunk.type.num_fields else chunk
        if chunk.null_count or held.null_count:
            return False
    return True


# --- opening -----------------------------------------------------------------------------------------------


def _locate(given: ImagesArgument) -> Location | None:
    if not (given.is_text and given.text.startswith(PREFIX)):
        return None
    name = given.text.removeprefix(PREFIX)
    if not name:
        raise SourceError(
            f"{given.text}: no name", hint="hf:NAME or hf:PATH, optionally with ?image=COLUMN&label=COLUMN&config=NAME"
        )
    return given.at("hub", name, prefix=PREFIX, options=(*OPTIONS, "config"))


@register("hub", rank=41, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> HubSource:
    loaded = _load(location.place, location.option("config"), opening.datasets_dir, opening.download)
    omissions = Omissions()
    tables = _by_split(loaded, location.origin, omissions)
    features = next(iter(tables.values())).features
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if location.option("label") is None:
        refuse_several(location.origin.partition("?")[0], labels)
    plain = [name for name, kind in features.items() if name not in images and _holds_cells(kind)]
    roles = find_roles(
        location.origin,
        [*images, *plain],
        dict(location.options),
        opening.columns,
        omissions,
        types={name: _KINDS[kind] for name in plain if (kind := getattr(features[name], "dtype", "")) in _KINDS},
        image=images[0] if images else None,
        label=labels[0] if len(labels) == 1 else None,
        without=images,
    )
    classes = getattr(features[roles.label], "names", None) if roles.label else None
    return HubSource(
        tables,
        roles,
        classes=None if classes is None else tuple(map(str, classes)),
        name=location.place.rsplit("/", 1)[-1],
        origin=location.origin,
        omissions=omissions,
    )


def _holds_cells(kind: Any) -> bool:
    if isinstance(kind, dict):
        return False
    inner = getattr(kind, "feature", None)
    return getattr(kind, "dtype", None) not in ("binary", "large_binary") and not isinstance(inner, dict)


def _by_split(loaded: Mapping[str, Any], origin: str, omissions: Omissions) -> dict[str, Any]:
    found: dict[str, Any] = {}
    left_out = []
    for name, table in loaded.items():
        try:
            split = split_in(str(name))
        except SplitAmbiguous:
            split = None
        if split is None or split in found:
            left_out.append(str(name))
        else:
            found[split] = table
    if not found:
        raise SourceError(f"{origin}: has the splits {', '.join(left_out)}, expected train, validation or test")
    if left_out:
        omissions.note(f"left out: the splits {', '.join(left_out)}")
    return {split: found[split] for split in SPLITS if split in found}


def _load(name: str, config: str | None, datasets_dir: Path, download: bool) -> Mapping[str, Any]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("a Hugging Face data set", package=error.name or "datasets", extra="hf") from error
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            name,
            config,
            cache_dir=str(datasets_dir / "huggingface"),
            download_config=datasets.DownloadConfig(local_files_only=not download),
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # The same errors are raised without a network, for an unknown set, and if a subset must be chosen.
        reason = " ".join(str(error).split())
        raise DownloadError(
            f"hf:{name} cannot be loaded: {reason}",
            hint="a set with several subsets needs ?config=NAME; Parquet files need no network: hf:PATH.parquet",
        ) from error
    tables: Mapping[str, Any] = loaded
    return tables
