"""The manifest of a cache in segments: the list of its files, complete or not.

A segment is a complete cache file that holds a range of one split's rows. An unfinished extraction is a manifest whose
segments are not all written yet; a complete manifest has the digest of the trailer of each. Reading a manifest needs
neither NumPy nor libhdf5, so that `ls` is fast.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from featcache.cache.spec import Json, Selection, Spec, canonical_json
from featcache.cache.trailer import Trailer
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, CacheNotFound, CacheOutdated
from featcache.files import publish_bytes, unreadable

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "featcache-manifest"
MANIFEST_VERSION = 2
SEGMENT_SUFFIX = ".h5"
#: The possible names of the targets file: a new file takes the name that the manifest does not use.
TARGETS_FILES = ("targets-1.h5", "targets-2.h5")
# Every segment that is read stays open, and a process may open about a thousand files.
MOST_SEGMENTS = 512


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One file of rows.

    Args:
        file: Its name in the folder.
        split: The split of its rows.
        rows: How many rows it will hold; in a complete manifest, how many it holds.
        nbytes: Its exact size; None until the manifest is complete.
        trailer: The digest of its trailer; None until the manifest is complete.
    """

    file: str
    split: str
    rows: int
    nbytes: int | None = None
    trailer: str | None = None

    @classmethod
    def plan(cls, split: str, first: int, rows: int) -> Segment:
        """A segment that will be written. `first`: its first row, counted in the split."""
        return cls(file=f"{split}-{first:09d}{SEGMENT_SUFFIX}", split=split, rows=rows)

    def with_trailer(self, trailer: Trailer) -> Segment:
        """The same segment with size and digest from the trailer of its file."""
        rows: Any = trailer.about["rows"]
        return replace(self, rows=int(rows[self.split]), nbytes=trailer.file_bytes, trailer=trailer_digest(trailer))


@dataclass(frozen=True, kw_only=True)
class TargetsFile:
    """The targets file of a cache in segments: its name in the folder, exact size, and the digest of its trailer."""

    file: str
    nbytes: int
    trailer: str

    @classmethod
    def of(cls, file: str, trailer: Trailer) -> TargetsFile:
        """The record of a written file, from its trailer."""
        return cls(file=file, nbytes=trailer.file_bytes, trailer=trailer_digest(trailer))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The list of the files of a cache, and its metadata.

    Args:
        texts: The root attributes that a single file would have.
        segments: The segments, in the order of their rows.
        segment_rows: How many rows a segment has, for every process that takes part.
        command: The command that completes the cache.
        complete: Whether every segment was written.
        targets: The targets file. An unfinished extraction has none, or that of the complete cache that it changes,
            whose targets are kept when it is finished.
    """

    texts: Mapping[str, str]
    segments: tuple[Segment, ...]
    segment_rows: int
    command: str
    complete: bool = False
    targets: TargetsFile | None = None

    @property
    def spec(self) -> Spec:
        """How the rows were computed."""
        return Spec.from_json(self.texts["spec"])

    @property
    def selection(self) -> Selection:
        """The data set and the images chosen from it."""
        return Selection.from_json(self.texts["selection"])

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each split, in all segments."""
        found: dict[str, int] = {}
        for segment in self.segments:
            found[segment.split] = found.get(segment.split, 0) + segment.rows
        return {split: rows for split, rows in found.items() if rows or not self.complete}

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes; 0 for those that are not written."""
        return sum(size or 0 for size in self.sizes.values())

    @property
    def sizes(self) -> dict[str, int | None]:
        """The exact size in bytes of each file in the folder; None for those that are not written."""
        named = {self.targets.file: self.targets.nbytes} if self.targets is not None else {}
        return {segment.file: segment.nbytes for segment in self.segments} | named

    def rows_there(self, folder: Path) -> int:
        """How many rows have been written: those of the segments whose file is in the folder."""
        return sum(segment.rows for segment in self.segments if (folder / segment.file).is_file())

    def require_complete(self, folder: Path) -> None:
        """Raises CacheIncomplete, with the command that completes it."""
        if not self.complete:
            total = sum(self.rows.values())
            raise CacheIncomplete(
                f"{folder.name} is not finished: {self.rows_there(folder):,} of {total:,} rows are written",
                hint=f"finish it with `{self.command}`: it continues where it stopped",
            )

    def write(self, folder: Path) -> None:
        """Publish it in the folder; it replaces an earlier manifest. Raises CacheUnwritable."""
        publish_bytes(folder / MANIFEST_NAME, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The contents of its file."""
        body = self._body()
        return json.dumps({**body, "xxh3_128": _digest(body)}, indent=1).encode()

    def _body(self) -> dict[str, Json]:
        return {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "complete": self.complete,
            "command": self.command,
            "segment_rows": self.segment_rows,
            "texts": dict(self.texts),
            "segments": [
                {"file": one.file, "split": one.split, "rows": one.rows, "bytes": one.nbytes, "trailer": one.trailer}
                for one in self.segments
            ],
            "targets": None
            if self.targets is None
            else {"file": self.targets.file, "bytes": self.targets.nbytes, "trailer": self.targets.trailer},
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in a folder.

        Raises:
            CacheNotFound: There is none.
            CacheUnreadable: It cannot be read now.
            CacheDamaged: It was changed.
            CacheOutdated: It was written by an earlier featcache.
            CacheForeign: It is another file, or of a newer version.
        """
        path = folder / MANIFEST_NAME
        try:
            values: Any = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFound(
                f"there is no cache at {folder}: it has no {MANIFEST_NAME}", hint="`featcache ls` lists all caches"
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise CacheDamaged(f"{path} is not a manifest: {error}", hint="extract again") from error
        if not isinstance(values, dict) or values.get("format") != MANIFEST_FORMAT:
            raise CacheForeign(f"{path} is not the manifest of a feature cache")
        version = values.get("version")
        if type(version) is int and version < MANIFEST_VERSION:
            raise CacheOutdated(str(folder))
        if version != MANIFEST_VERSION:
            raise CacheForeign(
                f"{path} has version {version}, this featcache knows {MANIFEST_VERSION}",
                hint="update featcache, or extract again",
            )
        sealed = values.pop("xxh3_128", None)
        if sealed != _apply(path, values, _digest):
            raise CacheDamaged(f"{path} does not match its own digest", hint="extract again")
        try:
            manifest: Manifest = _apply(path, values, _parse)
        except CacheOutdated as error:
            raise CacheOutdated(str(folder)) from error
        return manifest


def trailer_digest(trailer: Trailer) -> str:
    """xxh3-128 of a segment's trailer, which holds the digests of its header and tables."""
    return xxhash.xxh3_128_hexdigest(trailer.to_bytes())


def _digest(body: Mapping[str, Json]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(dict(body)).encode())


def _apply(path: Path, values: Mapping[str, Any], work: Callable[[Mapping[str, Any]], Any]) -> Any:
    try:
        return work(values)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"featcache did not write {path}: {error!r}") from error


def _parse(values: Mapping[str, Any]) -> Manifest:
    complete = values["complete"]
    manifest = Manifest(
        texts={str(key): str(text) for key, text in values["texts"].items()},
        segments=tuple(_segment(one, complete=complete) for one in values["segments"]),
        segment_rows=_count(values["segment_rows"]),
        command=str(values["command"]),
        complete=complete,
        targets=_targets(values["targets"], complete=complete),
    )
    if type(complete) is not bool or len(manifest.segments) > MOST_SEGMENTS:
        raise ValueError(f"complete is {complete!r}, and it has {len(manifest.segments)} segments")
    if len({segment.file for segment in manifest.segments}) != len(manifest.segments):
        raise ValueError("a segment is listed twice")
    _ = manifest.spec, manifest.selection
    for name in ("set_name", "targets", "provenance", "skipped"):
        _ = manifest.texts[name]
    return manifest


def _targets(one: Mapping[str, Any] | None, *, complete: bool) -> TargetsFile | None:
    if one is None and not complete:
        return None
    if one is None or one["file"] not in TARGETS_FILES:
        raise ValueError(f"expected the targets file to be {' or '.join(TARGETS_FILES)}, got {one!r}")
    return TargetsFile(file=one["file"], nbytes=_count(one["bytes"]), trailer=str(one["trailer"]))


def _segment(one: Mapping[str, Any], *, complete: bool) -> Segment:
    file = one["file"]
    # A manifest from elsewhere must not refer to files outside its folder.
    if Path(file).name != file or not file.endswith(SEGMENT_SUFFIX) or file in TARGETS_FILES:
        raise ValueError(f"{file!r} is not the plain name of a segment")
    return Segment(
        file=file,
        split=str(one["split"]),
        rows=_count(one["rows"]),
        nbytes=_count(one["bytes"]) if complete else None,
        trailer=str(one["trailer"]) if complete else None,
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a number of rows or bytes, got {value!r}")
    return value
