"""`featcache.json`, the list of the files of a shared run or cache: name, size and SHA-256 of each.

A manifest may come from anywhere, so reading it accepts only plain names of safetensors, HDF5 and JSON files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from featcache.cache.catalog import CACHE_SUFFIX
from featcache.cache.manifest import MANIFEST_NAME
from featcache.errors import SharingError
from featcache.files import is_tmp
from featcache.runs.catalog import CONFIG_FILE, METRICS_FILE
from featcache.runs.files import WEIGHTS_FILE

Kind = Literal["run", "cache"]
MANIFEST_FILE = "featcache.json"
CARD_FILE = "README.md"
MANIFEST_FORMAT = "featcache-shared"
MANIFEST_VERSION = 1
#: The endings of the files that are shared.
SUFFIXES = (".safetensors", ".h5", ".json")
#: A larger manifest is not read: it has a few hundred bytes for each file.
MOST_MANIFEST_BYTES = 4 << 20
_NEEDED_OF_RUN = (CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE)
_LONGEST_NAME = 200
# A colon would name a stream of another file.
_NOT_ON_WINDOWS = frozenset('<>:"|?*')
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class SharedFile:
    """One file: its plain name, its size in bytes and the SHA-256 of its bytes as hex digits."""

    name: str
    nbytes: int
    sha256: str

    def __post_init__(self) -> None:
        _require_plain(self.name, "a file")
        if Path(self.name).suffix not in SUFFIXES or self.name == MANIFEST_FILE:
            raise SharingError(
                f"expected only {', '.join(SUFFIXES)} files, got {self.name!r}",
                hint="other formats can execute code when they are opened; ask for a copy that `featcache push` made",
            )
        if type(self.nbytes) is not int or self.nbytes < 0 or not _HEX.fullmatch(str(self.sha256)):
            raise SharingError(f"{self.name}: expected a size and a SHA-256, got {self.nbytes!r} and {self.sha256!r}")


@dataclass(frozen=True, kw_only=True)
class SharedManifest:
    """What is shared, and its files.

    Attributes:
        kind: "run" or "cache".
        name: The name of the run or the cache.
        fingerprints: The fingerprint of the spec of each cache that the features came from, with the layers in use.
        weights: SHA-256 over the tensors that each layer depends on, by BACKBONE/LAYER; None for pixels.
        licence: The licence, as the Hub abbreviates it; None where it was not stated.
        files: The files.

    Raises:
        SharingError: A name or a digest cannot be accepted, or a file is missing.
    """

    kind: Kind
    name: str
    fingerprints: tuple[str, ...]
    weights: Mapping[str, str | None] = field(default_factory=dict)
    licence: str | None = None
    files: tuple[SharedFile, ...]

    def __post_init__(self) -> None:
        _require_plain(self.name, f"a {self.kind}")
        names = [file.name for file in self.files]
        # Some disks do not distinguish upper from lower case.
        if len({name.casefold() for name in names}) != len(names):
            raise SharingError(f"a file of {self.name} is listed twice: {', '.join(sorted(names))}")
        if missing := [name for name in self._essential_files() if name not in names]:
            raise SharingError(f"the {self.kind} {self.name} lacks the file {missing[0]}", hint="push it again")
        if self.kind == "cache" and (others := [name for name in names if not self._belongs_to_cache(name)]):
            raise SharingError(f"the file {others[0]} does not belong to a cache", hint="push it again")

    @property
    def nbytes(self) -> int:
        """The size of all files together, in bytes."""
        return sum(file.nbytes for file in self.files)

    @property
    def packed(self) -> str | None:
        """The name of the one file of a packed cache; None for a run, and for a cache in segments."""
        return self.files[0].name if self.kind == "cache" and len(self.files) == 1 else None

    def file(self, name: str) -> SharedFile:
        """The file of that name, which must be there."""
        return next(file for file in self.files if file.name == name)

    def _essential_files(self) -> Sequence[str]:
        if self.kind == "run":
            return _NEEDED_OF_RUN
        return (f"{self.name}{CACHE_SUFFIX}",) if len(self.files) == 1 else (MANIFEST_NAME,)

    def _belongs_to_cache(self, name: str) -> bool:
        return name == MANIFEST_NAME or name.endswith(CACHE_SUFFIX)

    def to_bytes(self) -> bytes:
        """The contents of `featcache.json`."""
        values = {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, **asdict(self)}
        return (json.dumps(values, indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> SharedManifest:
        """Read what `to_bytes` wrote. `where`: its place, for messages. Raises SharingError for anything else."""
        try:
            return _manifest_of(json.loads(content))
        except SharingError as error:
            raise SharingError(f"{where}: {error.message}", hint=error.hint) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SharingError(f"{where}: {MANIFEST_FILE} is damaged: {error!r}", hint="push it again") from error


def _manifest_of(values: Any) -> SharedManifest:
    if not isinstance(values, dict) or values.get("format") != MANIFEST_FORMAT:
        raise SharingError(f"{MANIFEST_FILE} was not written by featcache push")
    if values.get("version") != MANIFEST_VERSION:
        raise SharingError(
            f"expected version {MANIFEST_VERSION} of {MANIFEST_FILE}, got {values.get('version')!r}",
            hint="update featcache, or push it again",
        )
    kind, licence = values["kind"], values["licence"]
    if kind not in ("run", "cache"):
        raise SharingError(f"expected a run or a cache, got {kind!r}")
    if licence is not None and not isinstance(licence, str):
        raise TypeError(f"licence {licence!r}")
    return SharedManifest(
        kind=kind,
        name=values["name"],
        fingerprints=tuple(str(one) for one in values["fingerprints"]),
        weights={str(name): None if digest is None else str(digest) for name, digest in values["weights"].items()},
        licence=licence,
        files=tuple(SharedFile(**file) for file in values["files"]),
    )


def _require_plain(name: object, what: str) -> None:
    """Raises SharingError unless a text is the name of something directly in a folder, on every operating system."""
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _LONGEST_NAME
        or PurePosixPath(name).name != name
        or PureWindowsPath(name).name != name
        or not name.isprintable()
        or set(name) & _NOT_ON_WINDOWS
        or name[0] in ".~-"
        or is_tmp(Path(name))
    ):
        raise SharingError(
            f"{what} cannot be called {name!r}",
            hint="expected a plain name without slashes, colons or a leading dot; rename it before it is pushed",
        )
