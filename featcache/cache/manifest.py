"""The manifest of a sharded cache: which files it is made of, in which order, and what must be true of each.

Reading it needs neither NumPy nor libhdf5, so `ls` may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from featcache.cache.spec import Json, Selection, Spec, canonical_json
from featcache.cache.trailer import Trailer
from featcache.errors import CacheDamaged, CacheForeign, CacheNotFound, CacheOutdated

if TYPE_CHECKING:
    from featcache.cache.parts import Skipped
    from featcache.cache.stored import StoredFile

SHARDED_SUFFIX = ".sharded"
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "featcache-shards"
MANIFEST_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file: its name in the folder, its exact size, the digest of its trailer, and its rows by split."""

    file: str
    nbytes: int
    trailer: str
    rows: Mapping[str, int]

    @classmethod
    def of(cls, file: StoredFile) -> Shard:
        """The record of an open shard."""
        rows = {
            name.split("/")[0]: place.shape[0]
            for name, place in file.contents.arrays.items()
            if name.endswith("/labels")
        }
        return cls(
            file=file.path.name,
            nbytes=file.trailer.file_bytes,
            trailer=trailer_digest(file.trailer),
            rows=rows,
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the shards are together. `texts` are the root attributes a single file would have."""

    texts: Mapping[str, str]
    shards: tuple[Shard, ...]

    @property
    def spec(self) -> Spec:
        """What the rows were computed under."""
        return Spec.from_json(self.texts["spec"])

    @property
    def selection(self) -> Selection:
        """Which images of which set they show."""
        return Selection.from_json(self.texts["selection"])

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split over all shards."""
        found: dict[str, int] = {}
        for shard in self.shards:
            for split, count in shard.rows.items():
                found[split] = found.get(split, 0) + count
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.nbytes for shard in self.shards)

    def to_bytes(self) -> bytes:
        """The manifest as it stands in its file."""
        body = self._body()
        return json.dumps({**body, "xxh3_128": _digest(body)}, indent=1).encode()

    def _body(self) -> dict[str, Json]:
        return {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "texts": dict(self.texts),
            "shards": [
                {"file": one.file, "bytes": one.nbytes, "trailer": one.trailer, "rows": dict(one.rows)}
                for one in self.shards
            ],
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in a folder.

        Raises CacheNotFound where there is none, CacheDamaged for one that was changed, CacheOutdated for one of an
        earlier featcache, CacheForeign for another file or a newer version.
        """
        path = folder / MANIFEST_NAME
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFound(
                f"there is no cache at {folder}: it has no {MANIFEST_NAME}", hint="`featcache ls` lists those there are"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CacheDamaged(f"{path} is no manifest: {error}", hint="extract again") from error
        if not isinstance(values, dict) or values.get("format") != MANIFEST_FORMAT:
            raise CacheForeign(f"{path} is no manifest of a sharded cache")
        if values.get("version") != MANIFEST_VERSION:
            raise CacheForeign(
                f"{path} has version {values.get('version')}, this featcache knows {MANIFEST_VERSION}",
                hint="update featcache, or extract again",
            )
        sealed = values.pop("xxh3_128", None)
        if sealed != _digest(values):
            raise CacheDamaged(f"{path} does not match its own digest", hint="extract again")
        return _parsed(path, values)


def root_texts(
    *,
    spec: Spec,
    selection: Selection,
    set_name: str,
    classes: Sequence[str],
    provenance: Mapping[str, Json],
    skipped: Sequence[Skipped],
) -> dict[str, str]:
    """What a cache says of itself as a whole: the root attributes of a file, the texts of a manifest."""
    return {
        "set_name": set_name,
        "spec": spec.to_json(),
        "selection": selection.to_json(),
        "classes": json.dumps(list(classes)),
        "provenance": canonical_json(dict(provenance)),
        "skipped": json.dumps([one.as_json() for one in skipped]),
    }


def trailer_digest(trailer: Trailer) -> str:
    """xxh3-128 of a shard's trailer, which holds the digests of its header and tables."""
    return xxhash.xxh3_128_hexdigest(trailer.to_bytes())


def _digest(body: Mapping[str, Json]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json(dict(body)).encode())


def _parsed(path: Path, values: Mapping[str, Any]) -> Manifest:
    try:
        shards = tuple(
            Shard(file=_plain_name(one["file"]), nbytes=one["bytes"], trailer=one["trailer"], rows=dict(one["rows"]))
            for one in values["shards"]
        )
        manifest = Manifest(texts={str(key): str(text) for key, text in values["texts"].items()}, shards=shards)
        _ = manifest.spec, manifest.selection, manifest.nbytes, manifest.rows
        return manifest
    except CacheOutdated as error:
        raise CacheOutdated(str(path.parent)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheForeign(f"{path} is none that featcache wrote: {error!r}") from error


def _plain_name(name: str) -> str:
    # A stranger's manifest must not lead out of its folder.
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no plain file name")
    return name
