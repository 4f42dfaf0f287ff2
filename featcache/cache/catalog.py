"""List, find, describe and remove the caches of a folder, complete or unfinished, and find what `gc` may remove.

A packed cache is described by its last bytes, a cache in segments by its manifest, so listing a hundred takes a few
milliseconds and imports neither NumPy nor h5py. The time of last use is the modification time of an empty file next to
the cache, `<name>.used`: access times are switched off or stale on many disks.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache.locks import LOCK_SUFFIX, is_locked
from featcache.cache.manifest import MANIFEST_NAME, SEGMENT_SUFFIX, Manifest
from featcache.cache.spec import Selection, Spec, canonical_json
from featcache.cache.trailer import TARGETS_FORMAT, open_cache, read_trailer
from featcache.errors import (
    CacheDamaged,
    CacheError,
    CacheForeign,
    CacheIncomplete,
    CacheNotFound,
    CacheOutdated,
    CacheUnreadable,
)
from featcache.files import is_abandoned, is_tmp, unreadable

CACHE_SUFFIX = ".h5"
USED_SUFFIX = ".used"
#: The first part of the names of empty files by which tasks on other machines show that they have begun.
MARK = "begun-"
DAMAGED_SUFFIX = ".damaged"
_RENAMED = re.compile(re.escape(DAMAGED_SUFFIX) + r"-\d+$")
# Folders of earlier versions: rows of an extraction, and a cache in several files.
_OUTDATED_SUFFIXES = (".parts", ".sharded")
COMPLETE, UNFINISHED, DAMAGED, FOREIGN = "complete", "unfinished", "damaged", "foreign"
UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One cache in a folder, or another file with the name of a cache.

    Args:
        path: The file, or the folder of segments.
        state: complete, unfinished, damaged, foreign, or unreadable where it cannot be opened now.
        nbytes: Its size on disk, in bytes.
        set_name, spec, selection: What it was computed from; None where that is not known.
        rows: The number of rows of each split, once it is complete.
        rows_done: How many of them have been written.
        skipped: How many images were skipped.
        created: The time of its creation, ISO 8601.
        used: The time of last use in seconds since the epoch; None: never.
        command: The command that finishes an unfinished cache.
        problem: What is wrong with a damaged, foreign or unreadable file.
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
    command: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """Its name in commands: the file's name without its ending."""
        return name_of(self.path)

    @property
    def complete(self) -> bool:
        """Whether heads can be trained on it."""
        return self.state == COMPLETE

    @property
    def rows_total(self) -> int:
        """Rows of all splits together."""
        return sum((self.rows or {}).values())

    def require_complete(self) -> Path:
        """The path of a complete cache. Raises CacheIncomplete, CacheDamaged, CacheForeign or CacheUnreadable."""
        if self.state == UNFINISHED:
            raise CacheIncomplete(
                f"{self.name} is not finished: {self.rows_done:,} of {self.rows_total:,} rows are written",
                hint=f"finish it with `{self.command}`: it continues where it stopped",
            )
        if self.state == DAMAGED:
            raise CacheDamaged(
                self.problem or f"{self.path} is damaged",
                hint=f"`featcache verify {self.path} --full` lists what is damaged; extracting again repairs it",
            )
        if self.state == UNREADABLE:
            raise CacheUnreadable(self.problem or f"{self.path} cannot be read now", hint="try again")
        if self.state == FOREIGN:
            raise CacheForeign(self.problem or f"{self.path} is no feature cache")
        return self.path


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that may be removed: its path, its size in bytes, and the reason."""

    path: Path
    nbytes: int
    reason: str


def name_of(path: Path) -> str:
    """The name of the cache whose file or folder lies at `path`."""
    return path.name.removesuffix(CACHE_SUFFIX)


def single_file_path(path: Path) -> Path:
    """The path of the cache of that file or folder when it is packed into one file."""
    return path.with_name(name_of(path) + CACHE_SUFFIX)


def segments_path(path: Path) -> Path:
    """The folder of the cache of that file or folder when it is in segments."""
    return path.with_name(name_of(path))


def places_of(path: Path, features_dir: Path) -> tuple[Path, ...]:
    """The paths where a cache recorded at `path` may be now: packed or in segments, there or in `features_dir`."""
    return tuple(
        form(folder / path.name) for folder in (path.parent, features_dir) for form in (single_file_path, segments_path)
    )


def is_cache_path(path: Path) -> bool:
    """Whether a path looks like a cache: a file by its suffix, a folder by its manifest."""
    if path.suffix == CACHE_SUFFIX:
        return True
    # A folder that is still being copied has a manifest already.
    if is_tmp(path):
        return False
    return (path / MANIFEST_NAME).is_file() or (path.suffix in _OUTDATED_SUFFIXES and path.is_dir())


def list_caches(features_dir: Path) -> list[CacheEntry]:
    """All caches in a folder, sorted by name: complete, unfinished, damaged and foreign.

    The segments of a cache that is packed are not listed too.

    Args:
        features_dir: The folder; one that does not exist has no caches.

    Returns:
        One entry for each cache.

    Raises:
        CacheForeign: `features_dir` is no folder.
        CacheUnreadable: The folder cannot be listed now.
    """
    paths = [path for path in _names(features_dir) if is_cache_path(path)]
    packed = {name_of(path) for path in paths if path.suffix == CACHE_SUFFIX}
    entries = []
    for path in paths:
        if path.suffix == CACHE_SUFFIX or name_of(path) not in packed:
            # It may have been removed in the meantime, or be a broken link.
            with contextlib.suppress(CacheNotFound):
                entries.append(describe(path))
    return entries


def caches_with_spec(features_dir: Path) -> list[CacheEntry]:
    """The caches in a folder whose specs are known: complete and unfinished ones.

    Args:
        features_dir: The folder.

    Returns:
        Their entries; `spec` is never None.

    Raises:
        CacheForeign: `features_dir` is no folder.
    """
    return [entry for entry in list_caches(features_dir) if entry.spec is not None]


def describe(path: Path) -> CacheEntry:
    """Describe what is at a path, also a damaged or foreign file. Raises CacheNotFound where there is nothing."""
    try:
        return _of_folder(path) if path.is_dir() and path.suffix != CACHE_SUFFIX else _of_file(path)
    except CacheNotFound:
        raise
    except CacheError as error:
        states = {CacheForeign: FOREIGN, CacheUnreadable: UNREADABLE}
        state = next((state for kind, state in states.items() if isinstance(error, kind)), DAMAGED)
        return CacheEntry(path=path, state=state, nbytes=_bytes_of(path), problem=error.message)


def find(features_dir: Path, ref: str | Path) -> CacheEntry:
    """Find one cache.

    Args:
        features_dir: The folder of caches.
        ref: A path, a name, or the beginning of exactly one name.

    Returns:
        Its entry.

    Raises:
        CacheNotFound: No cache fits, or several; the hint lists them, or the nearest names.
    """
    path, name = Path(ref), str(ref)
    if not name:
        raise CacheNotFound("expected the name or the path of a cache, got an empty text", hint="see `featcache ls`")
    if is_path(name):
        is_name = len(path.parts) == 1 and not path.exists()
        return describe(features_dir / path if is_name else path)
    # A packed cache is preferred to segments of the same name.
    paths = sorted(filter(is_cache_path, _names(features_dir)), key=lambda one: one.suffix == CACHE_SUFFIX)
    known = {name_of(one): one for one in paths}
    matches = [name] if name in known else [one for one in known if one.startswith(name)]
    if len(matches) != 1:
        raise _not_found(features_dir, name, matches, known)
    return describe(known[matches[0]])


def is_cache(features_dir: Path, ref: str | Path) -> bool:
    """Whether `find` finds a cache by this name or path, complete or not."""
    try:
        return find(features_dir, ref).state != FOREIGN
    except CacheError:
        return False


def is_path(ref: str) -> bool:
    """Whether a text stands for the file or folder of a cache, not for its name or how its name begins."""
    path = Path(ref)
    return len(path.parts) > 1 or path.suffix == CACHE_SUFFIX


def find_all(features_dir: Path, beginning: str = "") -> list[CacheEntry]:
    """The caches whose names begin with a text; only the one with exactly that name, if there is one."""
    entries = [entry for entry in list_caches(features_dir) if entry.name.startswith(beginning)]
    return [entry for entry in entries if entry.name == beginning] or entries


def mark_used(path: Path, *, now: float) -> None:
    """Record that a cache was used. Nothing happens where the folder cannot be written.

    Args:
        path: The cache.
        now: The time, in seconds since the epoch.
    """
    with contextlib.suppress(OSError):
        used = _sidecar(path, USED_SUFFIX)
        used.touch()
        os.utime(used, (now, now))


def remove(path: Path) -> int:
    """Remove a cache, complete or not, and its mark of last use; returns the number of bytes that were freed.

    Raises CacheNotFound where nothing is there, CacheForeign for a file that featcache did not write.
    """
    entry = describe(path)
    if entry.state == FOREIGN:
        raise CacheForeign(f"{path} is not removed: {entry.problem}", hint="remove it yourself if you want to")
    if path.is_dir():
        discard_segments(path)
    else:
        path.unlink()
    if not single_file_path(path).exists() and not segments_path(path).exists():
        _sidecar(path, USED_SUFFIX).unlink(missing_ok=True)
    return entry.nbytes


def discard_segments(folder: Path) -> None:
    """Remove the manifest, the segments and other files of featcache in a folder, and the folder if it is empty then.

    After a failure the remaining files stay; `gc` lists them.
    """
    with contextlib.suppress(OSError):
        # First the manifest: without it the folder is no cache any more, even if the rest cannot be removed.
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in [*folder.glob(f"*{SEGMENT_SUFFIX}"), *folder.glob("*.tmp-*"), *folder.glob(f"{MARK}*")]:
            path.unlink(missing_ok=True)
        folder.rmdir()


def garbage(features_dir: Path, *, used: Collection[Path], now: float) -> list[Garbage]:
    """List what `gc` may remove: files of dead processes, segments of packed caches, caches that no run uses.

    Files that another process is writing now are not listed, nor are foreign files, nor damaged ones before a new
    extraction has replaced them.

    Args:
        features_dir: The folder of caches.
        used: The paths of the caches that runs refer to.
        now: The time, in seconds since the epoch.
    """
    # Compared by name, which contains spec and selection: a project that was moved still uses its caches.
    in_use = {name_of(path) for path in used}
    found = [*list_abandoned(features_dir, now)]
    for folder in filter(Path.is_dir, _names(features_dir)):
        found += list_abandoned(folder, now)
    names = {path.name for path in _names(features_dir)}
    for path in _names(features_dir):
        name = path.name.removesuffix(CACHE_SUFFIX).removesuffix(USED_SUFFIX).removesuffix(LOCK_SUFFIX)
        if is_locked(features_dir, name):
            continue
        reason = _reason(path, name, names, in_use)
        if reason is not None:
            found.append(Garbage(path=path, nbytes=_bytes_of(path), reason=reason))
    return found


def list_abandoned(folder: Path, now: float) -> list[Garbage]:
    """Unfinished files and folders in a folder whose writing process has ended."""
    return [
        Garbage(path=path, nbytes=_bytes_of(path), reason="left by a process that has ended")
        for path in (_names(folder) if folder.is_dir() else ())
        if is_tmp(path) and is_abandoned(path, now=now)
    ]


def _reason(path: Path, name: str, names: Collection[str], in_use: Collection[str]) -> str | None:
    """The reason why something may be removed; None where it may not."""
    if _RENAMED.search(path.name):
        return "damaged, replaced by a new extraction"
    if path.suffix in _OUTDATED_SUFFIXES:
        return None
    if path.suffix in (USED_SUFFIX, LOCK_SUFFIX) and not {name, f"{name}{CACHE_SUFFIX}"} & set(names):
        return "belongs to no cache"
    if path.is_dir():
        packed = single_file_path(path)
        if packed.exists() and describe(packed).complete:
            return "segments of a packed cache" if any(path.iterdir()) or _is_ours(path) else None
        if not (path / MANIFEST_NAME).exists():
            return "segments without a manifest" if _is_ours(path) else None
    if is_cache_path(path) and name not in in_use and describe(path).complete:
        return "no run uses it"
    return None


def _is_ours(folder: Path) -> bool:
    """Whether a folder without a manifest holds only segments and unfinished files."""
    found = list(folder.iterdir())
    return bool(found) and all(is_tmp(one) or one.suffix == SEGMENT_SUFFIX for one in found)


def keep_damaged(path: Path) -> Path:
    """Rename a damaged or foreign file at a cache's path to `<name>.damaged-N`; returns the new path.

    So a new extraction does not overwrite it. Raises OSError where it cannot be renamed.
    """
    number = 1
    while (renamed := path.with_name(f"{path.name}{DAMAGED_SUFFIX}-{number}")).exists():
        number += 1
    return path.rename(renamed)


def remove_garbage(found: Garbage) -> None:
    """Remove one finding of `garbage`; it may be gone already. Raises OSError where it cannot be removed."""
    path = found.path
    if _RENAMED.search(path.name) or is_tmp(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif path.is_dir():
        discard_segments(path)
    elif path.suffix == CACHE_SUFFIX:
        remove(path)
    else:
        path.unlink(missing_ok=True)


def _of_file(path: Path) -> CacheEntry:
    with open_cache(path) as file:
        about: Mapping[str, Any] = read_trailer(file).about
        size = file.size
    try:
        if about["format"] == TARGETS_FORMAT:
            raise CacheForeign(f"{path} holds only the targets of a cache in segments; the cache is its folder")
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
            used=_modification_time(_sidecar(path, USED_SUFFIX)),
        )
    except CacheOutdated as error:
        raise CacheOutdated(str(path)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CacheForeign(f"{path}: featcache did not write its trailer ({error})") from error


def _of_folder(folder: Path) -> CacheEntry:
    if folder.suffix in _OUTDATED_SUFFIXES and not (folder / MANIFEST_NAME).exists():
        raise CacheOutdated(str(folder))
    manifest = Manifest.read(folder)
    texts = manifest.texts
    for file, nbytes in manifest.sizes.items() if manifest.complete else ():
        found = _size_of(folder / file)
        if found != nbytes:
            raise CacheDamaged(f"{folder}: the file {file} has {found} bytes, expected {nbytes}")
    try:
        return CacheEntry(
            path=folder,
            state=COMPLETE if manifest.complete else UNFINISHED,
            nbytes=manifest.nbytes if manifest.complete else _bytes_of(folder),
            set_name=texts["set_name"],
            spec=manifest.spec,
            selection=manifest.selection,
            rows=manifest.rows,
            rows_done=sum(manifest.rows.values()) if manifest.complete else manifest.rows_there(folder),
            skipped=len(json.loads(texts["skipped"])),
            created=json.loads(texts["provenance"]).get("created"),
            used=_modification_time(_sidecar(folder, USED_SUFFIX)),
            command=manifest.command,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheForeign(f"{folder}: featcache did not write its manifest ({error})") from error


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
        raise unreadable(features_dir, error) from error


def _sidecar(path: Path, suffix: str) -> Path:
    return path.with_name(name_of(path) + suffix)


def _modification_time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _size_of(path: Path) -> int:
    """The size of a file in bytes, 0 where it is missing. Raises CacheUnreadable where that cannot be read now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise unreadable(path, error) from error


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
