"""From what the user says, a name or a path, to a source."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.errors import SourceError, UnknownName
from featcache.images.archive import open_archive
from featcache.images.folder import FolderSource
from featcache.images.layout import EXPECTED
from featcache.images.named import dataset_names, open_named
from featcache.images.sources import ImageSource, Report, has_archive_suffix


def open_source(
    dataset: str | Path, *, datasets_dir: Path, report: Report | None = None, download: bool = True
) -> ImageSource:
    """The images of a named set ("cifar10"), a folder, a zip or a tar.

    A name goes before a folder that is called the same: say "./cifar10" for the folder. `datasets_dir` is where
    named sets lie and are downloaded to; `report` takes progress in words, one line a call. With `download` false a
    named set that is not there is an error.
    Raises UnknownName (offering the nearest names), SourceError, DownloadError, MissingExtra.
    """
    if isinstance(dataset, str) and dataset in dataset_names():
        return open_named(dataset, datasets_dir, report, download=download)
    if dataset == "":
        raise UnknownName("data set", dataset, dataset_names(), listed_by="featcache datasets")
    path = Path(dataset).expanduser()
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:
        raise SourceError(f"{dataset}: cannot be opened: {error.strerror or error}") from error
    if is_folder:
        return FolderSource(path)
    if is_file:
        return open_archive(path, report)
    if exists:
        raise SourceError(f"{dataset}: neither a folder nor a regular file", hint=EXPECTED)
    if isinstance(dataset, Path) or _looks_like_path(dataset):
        raise SourceError(f"{dataset}: no such file or folder", hint=EXPECTED)
    raise UnknownName("data set", dataset, dataset_names(), listed_by="featcache datasets")


def _looks_like_path(text: str) -> bool:
    separators = "/" + os.sep
    return text.startswith(("~", ".")) or any(c in text for c in separators) or has_archive_suffix(text)
