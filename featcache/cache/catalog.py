"""The shelf: which caches lie in a folder, which are unfinished, which may go.

A cache is described by its last bytes and an unfinished one by its plan, so listing a hundred takes a few
milliseconds and imports neither NumPy nor h5py. When a cache was used last is the modification time of an empty
file beside it, `<name>.used`, for access times are switched off or stale on many disks.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache.locks import LOCK_SUFFIX, is_locked
from featcache.cache.manifest import MANIFEST_NAME, SHARDED_SUFFIX, Manifest
from featcache.cache.plan import PARTS_SUFFIX, covered_rows, discard_parts, part_paths, read_plan
from featcache.cache.spec import Selection, Spec, canonical_json
from featcache.cache.trailer import open_cache, read_trailer
from featcache.errors import CacheDamaged, CacheError, CacheForeign, CacheIncomplete, CacheNotFound, CacheOutdated
from featcache.files import is_abandoned, is_tmp

CACHE_SUFFIX = ".h5"
USED_SUFFIX = ".used"
DAMAGED_SUFFIX = ".damaged"
_SET_ASIDE = re.compile(re.escape(CACHE_SUFFIX + DAMAGED_SUFFIX) + r"-\d+$")
# In this order: a finished cache goes before parts of the same name.
_SUFFIXES = (PARTS_SUFFIX, SHARDED_SUFFIX, CACHE_SUFFIX)
_FINISHED = (CACHE_SUFFIX, SHARDED_SUFFIX)
COMPLETE, UNFINISHED, DAMAGED, FOREIGN = "complete", "unfinished", "damaged", "foreign"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One cache on the shelf, or what is in its place.

    `state` is complete, unfinished, damaged or foreign; `problem` says what is wrong with the last two, of which
    nothing else is known. `rows` are those of each split; `rows_done` how many of them are there; `nbytes` what
    it takes on disk; `created` an ISO 8601 time; `used` seconds since the epoch (None: never).
    """

    path: Path
    state: str
    nbytes: int
    set_name: str | None = None
    spec: Spec | None = None
    selection: Selection | None = None
    rows: Mapping[str, int] | None = None
    rows_done: int = 0
    skipped: int = 0
    created: str | None = None
    used: float | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """What commands call it: the file's name without its ending."""
        return name_of(self.path)

    @property
    def complete(self) -> bool:
        """Whether it can be trained on."""
        return self.state == COMPLETE

    @property
    def rows_total(self) -> int:
        """Rows of all splits together."""
        return sum((self.rows or {}).values())

    def require_complete(self) -> Path:
        """The path of a complete cache. Raises CacheIncomplete, CacheDamaged or CacheForeign for any other."""
        if self.state == UNFINISHED:
            raise CacheIncomplete(
                f"{self.name} is not finished: {self.rows_done:,} of {self.rows_total:,} rows are there",
                hint="run the same `featcache extract` again; it goes on where it stopped",
            )
        if self.state == DAMAGED:
            raise CacheDamaged(
                self.problem or f"{self.path} is damaged",
                hint=f"`featcache verify {self.path} --full` says how far; extracting again mends it",
            )
        if self.state == FOREIGN:
            raise CacheForeign(self.problem or f"{self.path} is no feature cache")
        return self.path


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that may go: where, how many bytes, and why."""

    path: Path
    nbytes: int
    reason: str


def name_of(path: Path) -> str:
    """The name of the cache whose file, parts or shards lie at `path`."""
    return path.name.removesuffix(CACHE_SUFFIX).removesuffix(PARTS_SUFFIX).removesuffix(SHARDED_SUFFIX)


def list_caches(features_dir: Path) -> list[CacheEntry]:
    """Everything on the shelf, by name: caches, unfinished ones, and files that are damaged or foreign.

    A folder that does not exist is an empty shelf. Raises CacheForeign where it is no folder.
    """
    entries = []
    for path in _names(features_dir):
        # What has gone in the meantime, or is a link to nothing, is not on the shelf.
        # Shards without a manifest are being written, or garbage.
        if path.suffix in _SUFFIXES and path.exists():
            with contextlib.suppress(CacheNotFound):
                entries.append(describe(path))
    return entries


def candidates(features_dir: Path) -> list[CacheEntry]:
    """The complete and unfinished caches with their specs: what an extraction may match against."""
    return [entry for entry in list_caches(features_dir) if entry.spec is not None]


def describe(path: Path) -> CacheEntry:
    """What lies at a path. Damaged and foreign files are described as such; raises CacheNotFound for nothing."""
    unfinished = path.suffix == PARTS_SUFFIX and path.is_dir()
    try:
        if path.suffix == SHARDED_SUFFIX:
            return _sharded(path)
        return _unfinished(path) if unfinished else _finished(path)
    except CacheError as error:
        if isinstance(error, CacheNotFound) and not unfinished:
            raise
        state = FOREIGN if isinstance(error, CacheForeign) else DAMAGED
        return CacheEntry(path=path, state=state, nbytes=_bytes_of(path), problem=error.message)


def find(features_dir: Path, ref: str | Path) -> CacheEntry:
    """The cache that `ref` means: a path, a full name, or a prefix that only one name has.

    Raises CacheNotFound for none or several; the hint lists them, or the nearest names.
    """
    path, name = Path(ref), str(ref)
    if len(path.parts) > 1 or path.suffix in _SUFFIXES:
        is_name = len(path.parts) == 1 and not path.exists()
        return describe(features_dir / path if is_name else path)
    shelf = _names(features_dir)
    known = {one.stem: one for suffix in _SUFFIXES for one in shelf if one.suffix == suffix}
    matches = [name] if name in known else [one for one in known if one.startswith(name)]
    if len(matches) != 1:
        raise _not_found(features_dir, name, matches, known)
    return describe(known[matches[0]])


def mark_used(path: Path, *, now: float) -> None:
    """Note that a cache was used at `now` (seconds since the epoch). A folder that cannot be written is fine."""
    with contextlib.suppress(OSError):
        used = _sidecar(path, USED_SUFFIX)
        used.touch()
        os.utime(used, (now, now))


def remove(path: Path) -> int:
    """Remove a cache, or the parts of an unfinished one, and what lies beside it; the bytes that were freed.

    Raises CacheNotFound where nothing is there, CacheForeign for what featcache did not write.
    """
    entry = describe(path)
    if entry.state == FOREIGN:
        raise CacheForeign(f"{path} is left alone: {entry.problem}", hint="remove it yourself if you mean it")
    if path.suffix == PARTS_SUFFIX:
        discard_parts(path)
    else:
        _discard_shards(path) if path.is_dir() else path.unlink()
        _sidecar(path, USED_SUFFIX).unlink(missing_ok=True)
    return entry.nbytes


def garbage(features_dir: Path, *, used: Collection[Path], now: float) -> list[Garbage]:
    """What `gc` may remove: files of dead processes, parts of finished caches, caches that no run uses.

    `used` are the paths of the caches that runs refer to. Damaged and foreign files are not among them before a new
    extraction has replaced them, nor anything that somebody is writing now.
    """
    in_use = {path.resolve() for path in used}
    found = [*_abandoned(features_dir, now)]
    names = {path.name for path in _names(features_dir)}
    for path in _names(features_dir):
        if is_locked(features_dir, path.stem):
            continue
        finished = [path.with_suffix(suffix) for suffix in _FINISHED if f"{path.stem}{suffix}" in names]
        if path.suffix == PARTS_SUFFIX and finished:
            if any(describe(one).complete for one in finished):
                found.append(Garbage(path=path, nbytes=_bytes_of(path), reason="parts of a finished cache"))
        elif path.suffix in (USED_SUFFIX, LOCK_SUFFIX) and not finished:
            found.append(Garbage(path=path, nbytes=_bytes_of(path), reason="belongs to no cache"))
        elif path.suffix == SHARDED_SUFFIX and not (path / MANIFEST_NAME).exists():
            found.append(Garbage(path=path, nbytes=_bytes_of(path), reason="shards that were never put together"))
        elif path.suffix in _FINISHED and path.resolve() not in in_use and describe(path).complete:
            found.append(Garbage(path=path, nbytes=_bytes_of(path), reason="no run uses it"))
        elif _SET_ASIDE.search(path.name):
            found.append(Garbage(path=path, nbytes=_bytes_of(path), reason="damaged, replaced by a new extraction"))
    return found


def set_aside(path: Path) -> Path:
    """Rename a file that lies under a cache's name and cannot be used, so that nothing of it is lost; its new path.

    Raises OSError where it cannot be renamed.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}{DAMAGED_SUFFIX}-{number}")).exists():
        number += 1
    return path.rename(aside)


def discard(found: Garbage) -> None:
    """Remove one piece of garbage. What has gone already is fine; raises OSError where it cannot be removed."""
    if found.path.suffix == PARTS_SUFFIX:
        discard_parts(found.path)
    elif found.path.suffix == SHARDED_SUFFIX:
        _discard_shards(found.path)
    elif found.path.suffix == CACHE_SUFFIX:
        remove(found.path)
    else:
        found.path.unlink(missing_ok=True)


def _finished(path: Path) -> CacheEntry:
    with open_cache(path) as file:
        about: Mapping[str, Any] = read_trailer(file).about
        size = file.size
    try:
        rows = {str(split): int(count) for split, count in about["rows"].items()}
        return CacheEntry(
            path=path,
            state=COMPLETE,
            nbytes=size,
            set_name=str(about["set_name"]),
            spec=Spec.from_json(canonical_json(about["spec"])),
            selection=Selection.from_json(canonical_json(about["selection"])),
            rows=rows,
            rows_done=sum(rows.values()),
            skipped=int(about["skipped"]),
            created=about["created"] if isinstance(about["created"], str) else None,
            used=_modified(_sidecar(path, USED_SUFFIX)),
        )
    except CacheOutdated as error:
        raise CacheOutdated(str(path)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"{path}: its trailer is none that featcache wrote ({error})") from error


def _sharded(folder: Path) -> CacheEntry:
    manifest = Manifest.read(folder)
    texts = manifest.texts
    for shard in manifest.shards:
        found = _bytes_of(folder / shard.file)
        if found != shard.nbytes:
            raise CacheDamaged(f"{folder}: the shard {shard.file} has {found} bytes, expected {shard.nbytes}")
    try:
        return CacheEntry(
            path=folder,
            state=COMPLETE,
            nbytes=manifest.nbytes,
            set_name=texts["set_name"],
            spec=manifest.spec,
            selection=manifest.selection,
            rows=manifest.rows,
            rows_done=sum(manifest.rows.values()),
            skipped=len(json.loads(texts["skipped"])),
            created=json.loads(texts["provenance"]).get("created"),
            used=_modified(_sidecar(folder, USED_SUFFIX)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheForeign(f"{folder}: its manifest is none that featcache wrote ({error})") from error


def _discard_shards(folder: Path) -> None:
    with contextlib.suppress(OSError):
        # Without its manifest it is no cache any more, however much of the rest can be removed.
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in [*folder.glob(f"*{CACHE_SUFFIX}"), *folder.glob("*.tmp-*")]:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _unfinished(path: Path) -> CacheEntry:
    plan = read_plan(path)
    parts = part_paths(path)
    total = sum(plan.rows.values())
    return CacheEntry(
        path=path,
        state=UNFINISHED,
        nbytes=_bytes_of(path),
        set_name=plan.set_name,
        spec=plan.spec,
        selection=plan.selection,
        rows=plan.rows,
        # Two processes may have done the same rows.
        rows_done=min(total, sum(map(covered_rows, parts))),
        created=plan.created,
        used=None,
    )


def _names(features_dir: Path) -> list[Path]:
    try:
        return sorted(features_dir.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise CacheForeign(
            f"{features_dir} is a file, expected a folder of caches", hint="pass another --data-dir"
        ) from error
    except OSError as error:
        raise CacheForeign(f"{features_dir} cannot be read: {error.strerror}") from error


def _abandoned(features_dir: Path, now: float) -> Iterator[Garbage]:
    folders = (path for path in _names(features_dir) if path.suffix in (PARTS_SUFFIX, SHARDED_SUFFIX))
    for folder in [features_dir, *folders]:
        for path in _names(folder) if folder.is_dir() else []:
            if is_tmp(path) and is_abandoned(path, now=now):
                yield Garbage(path=path, nbytes=_bytes_of(path), reason="left by a process that is gone")


def _sidecar(path: Path, suffix: str) -> Path:
    return path.with_name(name_of(path) + suffix)


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _bytes_of(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(one.stat().st_size for one in path.iterdir() if one.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _not_found(features_dir: Path, ref: str, matches: list[str], names: Collection[str]) -> CacheNotFound:
    if matches:
        return CacheNotFound(
            f"{len(matches)} caches begin with {ref!r}", hint="name one: " + ", ".join(sorted(matches))
        )
    near = difflib.get_close_matches(ref, names, n=4, cutoff=0.4) or sorted(names)[:8]
    hint = "there are: " + ", ".join(near) if near else "`featcache extract` makes one"
    return CacheNotFound(f"no cache in {features_dir} is called {ref!r}", hint=hint)
