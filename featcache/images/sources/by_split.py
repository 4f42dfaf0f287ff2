"""A mapping of splits to images of any kind, as one source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from featcache.columns import LABEL
from featcache.errors import ImageError, SourceError
from featcache.images.listing import Listing, NamedCells, SourceColumn, join_columns
from featcache.images.location import (
    OPEN,
    ImagesArgument,
    Location,
    OpenOptions,
    locate_given,
    object_location,
    register,
)
from featcache.images.names import join_classes
from featcache.images.omissions import Omissions
from featcache.images.options import SPLITS
from featcache.images.samples import Sample, Samples
from featcache.images.source import ImageSource, Payload, Stamp, check_splits
from featcache.images.splits import split_word


class SplitsSource(ImageSource):
    """One source for each split. Labels are joined by the names of their classes.

    Args:
        parts: By split, the source and the split of it to use.
        owned: The sources that are closed together with this one.
    """

    def __init__(self, parts: Mapping[str, tuple[ImageSource, str]], owned: ExitStack) -> None:
        check_splits(parts)
        self._parts = {split: parts[split] for split in SPLITS if split in parts}
        self._owned = owned
        columns = {split: _columns(split, source, inner) for split, (source, inner) in self._parts.items()}
        kinds = [one.kind for some in columns.values() for one in some if one.name == LABEL]
        classes, places = (
            ((), {}) if kinds else join_classes({one: part.classes for one, (part, _) in self._parts.items()})
        )
        samples, omissions = {}, Omissions()
        for split, (source, inner) in self._parts.items():
            found = Samples.of(inner, source.samples(inner))
            omissions.merge(source.omissions)
            if kinds:
                # If the labels of one split are not classes, none are.
                samples[split] = found.without_labels().move_to_split(split)
                columns[split] = [*_label_column(split, source, found, kinds[0]), *columns[split]]
            else:
                samples[split] = found.renumber_labels(places[split]).move_to_split(split)
        listing = Listing(
            samples=samples,
            classes=classes,
            columns=join_columns(columns, {split: len(some) for split, some in samples.items()}),
            omissions=omissions,
        )
        sizes = {source.native_size for source, _ in self._parts.values()}
        first = next(iter(self._parts.values()))[0]
        native = sizes.pop() if len(sizes) == 1 else None
        super().__init__(name=first.name, origin=first.name, listing=listing, native_size=native)

    def read(self, sample: Sample) -> Payload:
        """Read from the source of the sample's split."""
        source, inner = self._of(sample)
        return source.read(inner)

    def stamp(self, sample: Sample) -> Stamp | None:
        """The stamp from the source of the sample's split."""
        source, inner = self._of(sample)
        return source.stamp(inner)

    def mtime_ns(self, sample: Sample) -> int | None:
        """The mtime from the source of the sample's split."""
        source, inner = self._of(sample)
        return source.mtime_ns(inner)

    def close(self) -> None:
        """Close the sources that were opened for this one."""
        self._owned.close()

    def _of(self, sample: Sample) -> tuple[ImageSource, Sample]:
        if sample.split not in self._parts:
            raise ImageError(f"{sample.id}: no such image in {self.origin}")
        source, inner = self._parts[sample.split]
        return source, Sample(id=sample.id, split=inner, label=sample.label)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_owned"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owned = ExitStack()


def _columns(split: str, source: ImageSource, inner: str) -> list[SourceColumn]:
    """The columns of one split of a source, assigned to `split`."""
    return [replace(one, cells={split: one.cells[inner]}) for one in source.columns if inner in one.cells]


def _label_column(split: str, source: ImageSource, samples: Samples, kind: str | None) -> list[SourceColumn]:
    """Labels that are classes, as a column of class names; empty if there are no classes."""
    if not source.classes:
        return []
    return [SourceColumn(name=LABEL, kind=kind, cells={split: NamedCells(source.classes, samples.labels)})]


# --- from Python -------------------------------------------------------------------------------------------


def _locate(given: ImagesArgument) -> Location | None:
    if not isinstance(given.value, Mapping):
        return None
    if not given.value:
        raise SourceError("expected images of at least one split, got none")
    if given.labels is not None:
        hint = "{'train': (images, labels), ...}"
        raise SourceError("labels of several splits must be given with the images", hint=hint)
    named = _by_split(given.value)
    parts = {split: _part(split, named[split], given) for split in SPLITS if split in named}
    origins = [f"{split}={place.origin}".encode() for split, place in parts.items()]
    return object_location("splits", ImagesArgument(value=parts), origins)


def _by_split(images: Mapping[Any, Any]) -> dict[str, Any]:
    """The images by split; keys such as "training" and "dev" are names of splits too."""
    found: dict[str, Any] = {}
    for name, part in images.items():
        split = split_word(str(name))
        check_splits({split or name: None})
        if split is None or split in found:
            raise SourceError(f"both {name!r} and another key mean {split}", hint="give each split once")
        found[split] = part
    return found


def _part(split: str, value: Any, given: ImagesArgument) -> Location:
    images, labels = value, None
    # A pair of images and labels; two paths are a list of images.
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], str | os.PathLike):
        images, labels = value
    return locate_given(ImagesArgument(value=images, labels=labels, classes=given.classes, split=split))


@register("splits", rank=8, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> SplitsSource:
    parts: Mapping[str, Location] = location.given.value
    found = {}
    with ExitStack() as owned:
        for split, place in parts.items():
            source = place.open(
                datasets_dir=opening.datasets_dir,
                report=opening.report,
                download=opening.download,
                columns=opening.columns,
            )
            if place.kind != OPEN:
                owned.callback(source.close)
            found[split] = (source, _split_meant(source, split))
        return SplitsSource(found, owned.pop_all())


def _split_meant(source: ImageSource, split: str) -> str:
    """The split of a source to use: its only one, else the one of that name."""
    if len(source.splits()) == 1:
        return source.splits()[0]
    if split not in source.splits():
        raise SourceError(f"{source.origin} has the splits {', '.join(source.splits())}, none of which is {split}")
    return split
