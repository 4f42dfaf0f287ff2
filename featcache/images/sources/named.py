"""Opening a set by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.errors import SourceError, UnknownName
from featcache.images.source import UNLABELLED, ImageSource, Listing, Report
from featcache.images.sources.arrays import ArraySource
from featcache.images.sources.digits import digits
from featcache.images.sources.folder import FilesSource
from featcache.images.sources.torchvision_rows import ArrayRows, Extract, FileRows
from featcache.images.sources.torchvision_sets import NAMED_SETS, NamedSet


def dataset_names() -> tuple[str, ...]:
    """The names of all known sets, sorted."""
    return tuple(sorted(NAMED_SETS))


def describe(name: str) -> NamedSet:
    """What is known of a set without opening it. Raises UnknownName with the nearest names."""
    try:
        return NAMED_SETS[name]
    except KeyError:
        raise UnknownName("data set", name, NAMED_SETS, listed_by="featcache datasets") from None


def is_here(named: NamedSet, datasets_dir: Path) -> bool:
    """Whether the set needs no download: it comes with a package, or something lies in its folder of `datasets_dir`."""
    from featcache.images.sources.acquisition import lies_in

    return named.extract is None or lies_in(datasets_dir / named.name)


def open_named(name: str, datasets_dir: Path, report: Report | None = None, *, download: bool = True) -> ImageSource:
    """A known set, downloaded into `datasets_dir` unless it is there. Raises what `acquire` raises."""
    named = describe(name)
    if named.extract is None:
        return digits()
    # What downloads is imported where a set may have to be.
    from featcache.images.sources.acquisition import acquire

    datasets = acquire(named, datasets_dir, report, download=download)
    rows = {split: _rows(named, named.extract, data) for split, data in datasets.items()}
    classes = _classes(named, datasets)
    if report:
        _report_sizes(named, {split: len(part.labels) for split, part in rows.items()}, report)
    arrays = {split: part for split, part in rows.items() if isinstance(part, ArrayRows)}
    if arrays:
        return ArraySource(
            {split: (part.images, part.labels) for split, part in arrays.items()}, classes=classes, name=name
        )
    return _files_source(named, {s: part for s, part in rows.items() if isinstance(part, FileRows)}, classes)


def _rows(named: NamedSet, extract: Extract, data: Any) -> ArrayRows | FileRows:
    try:
        return extract(data)
    except (OSError, KeyError, ValueError) as error:
        raise SourceError(f"{named.name} cannot be read: {error}") from error


def _classes(named: NamedSet, datasets: Mapping[str, Any]) -> tuple[str, ...]:
    found = {split: names for split, data in datasets.items() if (names := _class_names(data))}
    for split, names in found.items():
        # Some of torchvision's classes number what folders they find: a missing one would shift all labels.
        if len(names) != named.class_count:
            raise SourceError(
                f"{named.name}: {len(names)} classes in {split}, {named.class_count} are published; "
                "the copy on disk is incomplete"
            )
    if named.classes is not None:
        return named.classes
    different = sorted(set(found.values()))
    if len(different) != 1:
        raise SourceError(f"{named.name}: the classes differ from split to split; the copy on disk is incomplete")
    return different[0]


def _class_names(data: Any) -> tuple[str, ...]:
    for attribute in ("classes", "categories", "all_categories"):
        names = getattr(data, attribute, None)
        if names:
            return tuple(str(name) for name in names)
    return ()


def _report_sizes(named: NamedSet, found: Mapping[str, int], report: Report) -> None:
    for split, size in found.items():
        if size != named.sizes[split]:
            report(f"{named.name}: {size:,} images in {split}, {named.sizes[split]:,} are published")


def _files_source(named: NamedSet, rows: Mapping[str, FileRows], classes: tuple[str, ...]) -> FilesSource:
    paths: dict[str, str] = {}
    listed: list[tuple[str, str, int]] = []
    for split, part in rows.items():
        for file, label in zip(part.files, part.labels, strict=True):
            inside = os.path.relpath(file, part.folder).replace(os.sep, "/")
            sample_id = f"{split}/{inside}"
            paths[sample_id] = str(file)
            listed.append((split, sample_id, UNLABELLED if label is None else int(label)))
    return FilesSource(
        name=named.name,
        origin=named.name,
        listing=Listing(listed, classes),
        paths=paths,
        native_size=named.image_size,
    )
