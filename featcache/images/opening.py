"""From what the user says, a name or a path, to a source."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from featcache.errors import SourceError, UnknownName
from featcache.images.layout import EXPECTED
from featcache.images.source import WEBDATASET, ImageSource, Report, has_archive_suffix
from featcache.images.sources.archive import open_archive
from featcache.images.sources.folder import FolderSource, has_images
from featcache.images.sources.hugging_face import PREFIX, holds_images, open_hugging_face
from featcache.images.sources.named import dataset_names, open_named
from featcache.images.sources.table import TableSource
from featcache.images.sources.webdataset import is_pattern, open_webdataset, tars_in
from featcache.images.tables import is_table


def open_source(
    dataset: str | Path, *, datasets_dir: Path, report: Report | None = None, download: bool = True
) -> ImageSource:
    """The images of a named set ("cifar10"), a folder, a zip, a tar, a table of paths or URLs, WebDataset
    tars, or a Hugging Face data set: `hf:NAME`, or Parquet files that hold images.

    A name goes before a folder that is called the same: say "./cifar10" for the folder. `datasets_dir` is where
    named sets lie and are downloaded to; `report` takes progress in words, one line a call. With `download` False
    nothing is fetched: a set that is not there is a DownloadError.
    Raises UnknownName (offering the nearest names), SourceError, DownloadError, MissingExtra.
    """
    if isinstance(dataset, str) and dataset in dataset_names():
        return open_named(dataset, datasets_dir, report, download=download)
    if is_pattern(dataset) or str(dataset).startswith(WEBDATASET):
        return open_webdataset(str(dataset).removeprefix(WEBDATASET), report)
    if dataset == "":
        raise UnknownName("data set", dataset, dataset_names(), listed_by="featcache datasets")
    if isinstance(dataset, str) and dataset.startswith(PREFIX):
        return open_hugging_face(dataset, datasets_dir=datasets_dir, report=report, download=download)
    path = Path(dataset).expanduser()
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:
        raise SourceError(f"{dataset}: cannot be opened: {error.strerror or error}") from error
    if is_folder:
        # A stray tar beside images is none of them; a folder of tars and nothing else is a set.
        return open_webdataset(path, report) if tars_in(path) and not has_images(path) else FolderSource(path)
    if is_file and holds_images(path):
        return open_hugging_face(str(path), datasets_dir=datasets_dir, report=report, download=download)
    if is_file and is_table(path):
        return TableSource(path)
    if is_file:
        return open_archive(path, report)
    if exists:
        raise SourceError(f"{dataset}: neither a folder nor a regular file", hint=EXPECTED)
    beside = _beside(path)
    if isinstance(dataset, Path) or _looks_like_path(dataset):
        near = difflib.get_close_matches(path.name, beside, n=1)
        offer = f"did you mean {path.with_name(near[0])}? " if near else ""
        raise SourceError(f"{dataset}: no such file or folder", hint=offer + EXPECTED)
    raise UnknownName("data set", dataset, [*dataset_names(), *beside], listed_by="featcache datasets")


def _beside(path: Path) -> list[str]:
    """The names of the folders and archives where `path` was looked for."""
    try:
        return sorted(one.name for one in path.parent.iterdir() if one.is_dir() or has_archive_suffix(one.name))
    except (OSError, ValueError):
        # A name with a NUL in it is nowhere.
        return []


def _looks_like_path(text: str) -> bool:
    separators = "/" + os.sep
    return text.startswith(("~", ".")) or any(c in text for c in separators) or has_archive_suffix(text)
