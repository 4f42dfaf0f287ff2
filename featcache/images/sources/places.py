"""Images that are named one by one, by paths or URLs: in a table, or in a list of paths."""

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
from featcache.images.location import ImagesArgument, Location, OpenOptions, absolute, object_location, register
from featcache.images.regular import MAX_FILE_BYTES
from featcache.images.samples import UNLABELLED, Sample
from featcache.images.source import Stamp, digest
from featcache.images.sources.folder import FilesSource

_SCHEMES = ("http", "https")
Digests = npt.NDArray[np.uint8]


class PlacesSource(FilesSource):
    """Images whose ids are paths, relative to a folder, or URLs. A URL is downloaded whenever its image is read.

    Args:
        name, origin, listing: As in `ImageSource`.
        folder: The folder to which paths are relative.
        digests: By split, the SHA-256 that each image must have, uint8 (N, 32), zeros if unknown; with it a URL need
            not be read again.
    """

    def __init__(
        self, *, name: str, origin: str, listing: Listing, folder: Path, digests: Mapping[str, Digests] | None = None
    ) -> None:
        super().__init__(name=name, origin=origin, listing=listing, paths={})
        self._folder, self._digests = folder, digests or {}

    def _path(self, sample: Sample) -> str:
        # Only `read` checks that the sample is listed: here, a stamp of each image would take four times as long.
        return os.path.join(self._folder, sample.id)  # noqa: PTH118

    def read(self, sample: Sample) -> bytes:
        """Read the file, or download the URL. Raises ImageError, also if the digest is not the expected one."""
        self._row(sample)
        if is_url(sample.id):
            # Imported only if there is a URL.
            from featcache.images.web import fetch

            content = fetch(sample.id, most_bytes=MAX_FILE_BYTES)
        else:
            content = super().read(sample)
        expected = self._digest_of(sample)
        if expected is not None and digest(content) != expected:
            raise ImageError(
                f"{sample.id}: expected sha256 {expected.hex()[:12]}.. according to {self.origin}, "
                f"got {digest(content).hex()[:12]}.."
            )
        return content

    def stamp(self, sample: Sample) -> Stamp | None:
        """The stamp of a file; for a URL ("sha256", digest) if the digest is known, else None."""
        if not is_url(sample.id):
            return super().stamp(sample)
        expected = self._digest_of(sample)
        return None if expected is None else ("sha256", expected.hex())

    def mtime_ns(self, sample: Sample) -> int | None:
        """The mtime of a file in ns; None for a URL."""
        return None if is_url(sample.id) else super().mtime_ns(sample)

    def _row(self, sample: Sample) -> int:
        try:
            return self._listing.samples[sample.split].find(sample.id)
        except KeyError:
            raise ImageError(f"{sample.id}: no such image in {self.origin}") from None

    def _digest_of(self, sample: Sample) -> bytes | None:
        if sample.split not in self._digests:
            return None
        expected = self._digests[sample.split][self._row(sample)]
        return expected.tobytes() if expected.any() else None


def is_url(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def require_scheme(place: str, where: str) -> None:
    """Raises SourceError for a URL that is neither http nor https. `where`: the row, for the message."""
    scheme, found, _ = place.partition("://")
    if found and scheme.lower() not in _SCHEMES:
        raise SourceError(f"{where}: expected http or https, got {scheme}://", hint="download it, and give its path")


# --- a list of paths ---------------------------------------------------------------------------------------


def _locate(given: ImagesArgument) -> Location | None:
    pairs = _paths_in(given.value)
    if pairs is None:
        return None
    paths, labels = pairs
    if labels is not None and given.labels is not None:
        raise SourceError("labels are given both with the paths and in labels=", hint="leave labels= out")
    places = [one if is_url(one) else str(absolute(one)) for one in paths]
    found = ImagesArgument(
        value=places, labels=given.labels if labels is None else labels, classes=given.classes, split=given.split
    )
    return object_location("paths", found, [one.encode("utf-8", "surrogateescape") for one in places])


def _paths_in(value: Any) -> tuple[list[str], list[Any] | None] | None:
    """The paths in a list, and the labels if it is a list of pairs (path, label); None for anything else."""
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(one, str | os.PathLike) for one in value):
        return [os.fspath(one) for one in value], None
    if all(isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str | os.PathLike) for one in value):
        return [os.fspath(path) for path, _ in value], [label for _, label in value]
    return None


@register("paths", rank=11, locate=_locate)
def _open(location: Location, opening: OpenOptions) -> PlacesSource:
    given: ImagesArgument = location.given
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
