"""Images named one by one, by paths or URLs; a list of paths is such a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError, SourceError
from featcache.images.labels import Labels, read_labels
from featcache.images.listing import Listing, ListingBuilder
from featcache.images.location import Given, Location, Opening, absolute, object_location, register
from featcache.images.regular import MAX_FILE_BYTES
from featcache.images.samples import UNLABELLED, Sample
from featcache.images.source import Stamp, digest
from featcache.images.sources.folder import FilesSource

_SCHEMES = ("http", "https")
Digests = npt.NDArray[np.uint8]


class PlacesSource(FilesSource):
    """Images whose ids are paths, relative to a folder, or URLs. A URL is read when its image is.

    Args:
        name, origin, listing: As `ImageSource` has them.
        folder: What relative paths begin at.
        digests: By split the SHA-256 that each image must have, uint8 (N, 32), zeros where none is known; with it an
            unchanged URL need not be read again.
    """

    def __init__(
        self, *, name: str, origin: str, listing: Listing, folder: Path, digests: Mapping[str, Digests] | None = None
    ) -> None:
        super().__init__(name=name, origin=origin, listing=listing, paths={})
        self._folder, self._digests = folder, digests or {}

    def _path(self, sample: Sample) -> str:
        # That it is listed is looked up where it is read: a stamp of each image would cost four times as long.
        return os.path.join(self._folder, sample.id)  # noqa: PTH118

    def read(self, sample: Sample) -> bytes:
        """The file's bytes, or what the URL gives. Raises ImageError, also where they lack the expected digest."""
        self._row(sample)
        if is_url(sample.id):
            # What reads URLs is imported where there is one.
            from featcache.images.web import fetch

            content = fetch(sample.id, most_bytes=MAX_FILE_BYTES)
        else:
            content = super().read(sample)
        expected = self._expected(sample)
        if expected is not None and digest(content) != expected:
            raise ImageError(
                f"{sample.id}: expected sha256 {expected.hex()[:12]}.. as {self.origin} has it, "
                f"got {digest(content).hex()[:12]}.."
            )
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """A file's own stamp; of a URL ("sha256", digest) where that is expected, else None."""
        if not is_url(sample.id):
            return super().stamp(sample)
        expected = self._expected(sample)
        return None if expected is None else ("sha256", expected.hex())

    def modified_ns(self, sample: Sample) -> int | None:
        """A file's mtime in ns."""
        return None if is_url(sample.id) else super().modified_ns(sample)

    def _row(self, sample: Sample) -> int:
        try:
            return self._listing.samples[sample.split].find(sample.id)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def _expected(self, sample: Sample) -> bytes | None:
        if sample.split not in self._digests:
            return None
        expected = self._digests[sample.split][self._row(sample)]
        return expected.tobytes() if expected.any() else None


def is_url(place: str) -> bool:
    """Whether a place is on the network."""
    return "://" in place


def require_scheme(place: str, where: str) -> None:
    """Raises SourceError for a URL that is neither http nor https. `where` names the row."""
    scheme, found, _ = place.partition("://")
    if found and scheme.lower() not in _SCHEMES:
        raise SourceError(f"{where}: expected http or https, got {scheme}://", hint="download it, and give its path")


# --- a list of paths ---------------------------------------------------------------------------------------


def _locate(given: Given) -> Location | None:
    pairs = _paths_in(given.value)
    if pairs is None:
        return None
    paths, labels = pairs
    if labels is not None and given.labels is not None:
        raise SourceError("labels stand beside the paths and in labels= too", hint="leave labels= out")
    places = [one if is_url(one) else str(absolute(one)) for one in paths]
    found = Given(
        value=places, labels=given.labels if labels is None else labels, classes=given.classes, split=given.split
    )
    return object_location("paths", found, [one.encode("utf-8", "surrogateescape") for one in places])


def _paths_in(value: Any) -> tuple[list[str], list[Any] | None] | None:
    """The paths in a list, and their labels in a list of pairs; None for anything else."""
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(one, str | os.PathLike) for one in value):
        return [os.fspath(one) for one in value], None
    if all(isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str | os.PathLike) for one in value):
        return [os.fspath(path) for path, _ in value], [label for _, label in value]
    return None


@register("paths", rank=11, locate=_locate)
def _open(location: Location, opening: Opening) -> PlacesSource:
    given: Given = location.given
    places: Sequence[str] = given.value
    known = read_labels(given.labels, len(places), given.split, given.classes)
    folder = _common_folder([one for one in places if not is_url(one)])
    builder = ListingBuilder({column.name: column.kind for column in known.columns}, known.classes)
    cells: list[Sequence[str | None]] = [next(iter(column.cells.values())) for column in known.columns]
    for row, place in enumerate(places):
        require_scheme(place, f"path {row}")
        name = place if is_url(place) else Path(place).relative_to(folder).as_posix()
        builder.add(given.split, name, _class_of(known, row, place), [some[row] for some in cells])
    return PlacesSource(
        name=folder.name or "paths", origin=location.origin, listing=builder.listing("paths"), folder=folder
    )


def _class_of(known: Labels, row: int, place: str) -> str | None:
    label = known.numbers[row]
    if not UNLABELLED <= label < len(known.classes):
        raise SourceError(f"{place}: expected a label from -1 (unlabelled) to {len(known.classes) - 1}, got {label}")
    return None if label == UNLABELLED else known.classes[label]


def _common_folder(paths: Sequence[str]) -> Path:
    if not paths:
        return Path.cwd()
    common = Path(os.path.commonpath(paths))
    return common.parent if len(set(paths)) == 1 or str(common) in paths else common
