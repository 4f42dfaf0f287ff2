"""`hf:NAME`: data sets of the Hugging Face Hub; `hf:PATH`: Parquet files that hold images, as it publishes them.

    hf:uoft-cs/cifar10               a set of the Hub, through the package datasets
    hf:uoft-cs/cifar100?label=fine_label      a column named, where several might be meant; ?config= names a subset
    hf:photos.parquet, photos.parquet         rows of images, read as they lie: nothing is copied
    hf:folder                        all Parquet files in it, the split by their names: train-00000-of-00002.parquet

An image's id is its split and row: "train/00012". Splits are train, val (validation, valid) and test; others are left
out, and it is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from featcache.errors import DownloadError, ImageError, MissingExtra, SourceError
from featcache.images.layout import SPLIT_NAMES
from featcache.images.source import SPLITS, ImageSource, Listing, Report, Sample, Stamp, numbered_ids
from featcache.images.sources.parquet_rows import ParquetRows, read_schema
from featcache.images.sources.row_features import Columns, class_numbers, find_columns
from featcache.images.sources.rows import HubRows, ImageRows

PREFIX: Final = "hf:"
_OPTIONS: Final = ("config", "image", "label")


class RowsSource(ImageSource):
    """Images that are rows of tables, one table a split."""

    def __init__(self, *, name: str, origin: str, rows: Mapping[str, ImageRows], columns: Columns) -> None:
        labels, classes = class_numbers({split: some.labels() for split, some in rows.items()}, columns.classes, origin)
        ids = {split: numbered_ids(split, range(len(some)), len(some)) for split, some in rows.items()}
        listing = Listing(
            ((split, i, n) for split in rows for i, n in zip(ids[split], labels[split], strict=True)), classes
        )
        super().__init__(name=name, origin=origin, listing=listing)
        self._rows = rows

    def read(self, sample: Sample) -> bytes:
        """The encoded image. Raises ImageError for a row that is not there, holds none or cannot be read."""
        rows, number = self._find(sample)
        return rows.read(number, sample.id)

    def stamp(self, sample: Sample) -> Stamp | None:
        """What the rows say: a Parquet file's size, time and row; of the Hub, the table's fingerprint and the row."""
        try:
            rows, number = self._find(sample)
        except ImageError:
            return None
        return rows.stamp(number)

    def modified_ns(self, sample: Sample) -> int | None:
        """The mtime in ns of the file that holds the row."""
        try:
            rows, number = self._find(sample)
        except ImageError:
            return None
        return rows.modified_ns(number)

    def _find(self, sample: Sample) -> tuple[ImageRows, int]:
        try:
            return self._rows[sample.split], self._listing.samples[sample.split].find(sample.id)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None


def open_hugging_face(
    said: str, *, datasets_dir: Path, report: Report | None = None, download: bool = True
) -> RowsSource:
    """The source that `said` means: with or without `hf:`, a path or a name of the Hub.

    Raises SourceError, MissingExtra (the package datasets), DownloadError.
    """
    place, options = _parsed(said)
    path = Path(place).expanduser()
    if path.suffix.lower() == ".parquet" or path.is_dir():
        return _open_parquet(path, options)
    return _open_hub(place, options, datasets_dir, report, download)


def holds_images(path: Path) -> bool:
    """Whether a Parquet file has a column that looks like images, not only their paths."""
    if path.suffix.lower() != ".parquet":
        return False
    kinds = {field.name: str(field.type) for field in read_schema(path)}
    if any(re.match(r"struct<.*bytes: (large_)?binary", kind) for kind in kinds.values()):
        return True
    # Beside a path, binary values are something else, a digest perhaps.
    return not {"path", "url"} & set(kinds) and any(kind in ("binary", "large_binary") for kind in kinds.values())


def _parsed(said: str) -> tuple[str, dict[str, str]]:
    place, _, asked = said.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(asked, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown or not place:
        what = f"no option {unknown[0]!r}" if unknown else "no name"
        raise SourceError(
            f"{said}: {what}", hint="hf:NAME, hf:PATH, perhaps with ?image=COLUMN&label=COLUMN&config=NAME"
        )
    return place, options


def _columns(features: Mapping[str, Any], where: str, options: Mapping[str, str]) -> Columns:
    return find_columns(features, where, image=options.get("image"), label=options.get("label"))


def _datasets() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("a Hugging Face data set", package=error.name or "datasets", extra="hf") from error
    return datasets


# --- Parquet files -----------------------------------------------------------------------------------------


def _open_parquet(path: Path, options: Mapping[str, str]) -> RowsSource:
    features_of = _datasets().Features.from_arrow_schema
    path = path.resolve()
    files = _by_split(path)
    where = f"{PREFIX}{path}"
    first = next(iter(files.values()))[0]
    columns = _columns(features_of(read_schema(first)), where, options)
    rows = {split: ParquetRows(some, images=columns.images, labels=columns.labels) for split, some in files.items()}
    asked = "&".join(f"{key}={value}" for key, value in sorted(options.items()))
    return RowsSource(name=path.stem, origin=where + (f"?{asked}" if asked else ""), rows=rows, columns=columns)


def _by_split(path: Path) -> dict[str, list[Path]]:
    if not path.is_dir():
        return {"train": [path]}
    found: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("*.parquet")):
        words = re.split(r"[^a-z]+", file.relative_to(path).as_posix().lower())
        named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if len(named) > 1:
            raise SourceError(f"{file}: its name says {' and '.join(sorted(named))}", hint="one split a file")
        found.setdefault(named.pop() if named else "train", []).append(file)
    if not found:
        raise SourceError(f"{path}: no Parquet files found", hint="hf: reads names of the Hub and Parquet files")
    return {split: found[split] for split in SPLITS if split in found}


# --- the Hub -----------------------------------------------------------------------------------------------


def _open_hub(
    name: str, options: Mapping[str, str], datasets_dir: Path, report: Report | None, download: bool
) -> RowsSource:
    origin = PREFIX + name + ("?" + "&".join(f"{k}={v}" for k, v in sorted(options.items())) if options else "")
    tables = _load(name, options.get("config"), datasets_dir, download)
    known = {SPLIT_NAMES[split.lower()]: table for split, table in tables.items() if split.lower() in SPLIT_NAMES}
    left_out = [split for split in tables if split.lower() not in SPLIT_NAMES]
    if not known:
        raise SourceError(f"{origin}: has the splits {', '.join(left_out)}, expected train, validation or test")
    if left_out and report is not None:
        report(f"{origin}: left out are the splits {', '.join(left_out)}")
    columns = _columns(next(iter(known.values())).features, origin, options)
    rows = {
        split: HubRows(known[split], images=columns.images, labels=columns.labels) for split in SPLITS if split in known
    }
    return RowsSource(name=name.rsplit("/", 1)[-1], origin=origin, rows=rows, columns=columns)


def _load(name: str, config: str | None, datasets_dir: Path, download: bool) -> Mapping[str, Any]:
    datasets = _datasets()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            name,
            config,
            cache_dir=str(datasets_dir / "huggingface"),
            download_config=datasets.DownloadConfig(local_files_only=not download),
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # It raises the same for no network, no such set and a subset that must be named.
        reason = " ".join(str(error).split())
        raise DownloadError(
            f"hf:{name} cannot be loaded: {reason}",
            hint="a set with several subsets takes ?config=NAME; Parquet files need no network: hf:PATH.parquet",
        ) from error
    tables: Mapping[str, Any] = loaded
    return tables
