"""A cache in several files: shards that are caches of their own, and a manifest that says what they are together.

`<cache name>.sharded/` holds `manifest.json` and the shards. The manifest names every shard with its size, its rows
and the digest of its trailer, which in turn holds the digests of its header and tables; so no shard can be missing,
short or another file without an error that names it. It is renamed into place when every shard is there, and a new
one never touches the shards of the old: their names follow from what they hold.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.donors import Donors
from featcache.cache.layout import SPLITS, ArrayPlace, Contents
from featcache.cache.manifest import MANIFEST_NAME, Manifest, Shard, root_texts, trailer_digest
from featcache.cache.parts import Skipped, SplitTable
from featcache.cache.rows import Rows
from featcache.cache.spec import Json, Selection, Spec, canonical_json
from featcache.cache.stored import StoredArrays, StoredFile
from featcache.cache.writer import assemble
from featcache.errors import CacheDamaged, CacheError, CacheForeign, CacheNotFound, InvalidOption
from featcache.files import publish_bytes

# Every shard that is read stays open, and a process may hold about a thousand files.
MOST_SHARDS = 512
Progress = Callable[[int, int], None]


class ShardedFile(StoredArrays):
    """The arrays of a sharded cache: those of its shards, one after the other."""

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[StoredFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = tuple(shards)
        self.contents = _joined(manifest, self.shards)
        self._holders = {
            split: [number for number, shard in enumerate(manifest.shards) if shard.rows.get(split)] for split in SPLITS
        }
        self._starts = {
            split: np.cumsum([0, *(manifest.shards[number].rows[split] for number in holders)])
            for split, holders in self._holders.items()
        }

    @classmethod
    def open(cls, path: Path) -> ShardedFile:
        """Open the manifest and check every shard against it.

        Raises CacheNotFound where there is no manifest, CacheForeign for another kind of file, CacheDamaged where a
        shard is missing, short or not the one that the manifest names.
        """
        manifest = Manifest.read(path)
        with contextlib.ExitStack() as opened:
            shards = (opened.enter_context(contextlib.closing(_opened(path, one, manifest))) for one in manifest.shards)
            whole = cls(path, manifest, list(shards))
            opened.pop_all()
            return whole

    @property
    def table_names(self) -> tuple[str, ...]:
        """The small arrays, which are digested whole."""
        return tuple(dict.fromkeys(name for shard in self.shards for name in shard.table_names))

    def read(self, name: str, rows: Rows, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows of an array, unchecked: (n, ...) in the stored dtype. `rows` must be in range."""
        place = self.place(name)
        if out is None:
            out = np.empty((len(rows), *place.shape[1:]), place.dtype)
        split = name.split("/")[0]
        starts = self._starts[split]
        holder = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(holder).tolist():
            places = np.flatnonzero(holder == number)
            file = self.shards[self._holders[split][number]]
            out[places] = file.read(name, rows[places] - starts[number])
        return out

    def read_table(self, name: str) -> npt.NDArray[Any]:
        """A whole small array, read-only. Raises CacheDamaged where a shard's does not match its digest."""
        place = self.place(name)
        table = np.empty(place.shape, place.dtype)
        split = name.split("/")[0]
        for number, start in zip(self._holders[split], self._starts[split].tolist(), strict=False):
            piece = self.shards[number].read_table(name)
            table[start : start + len(piece)] = piece
        table.flags.writeable = False
        return table

    def padding(self) -> Iterator[tuple[int, bytes]]:
        """What lies between the arrays of each shard: (offset, bytes), all zero in a sound file."""
        for shard in self.shards:
            yield from shard.padding()

    def close(self) -> None:
        """Give the files back. Reading again opens them again."""
        for shard in self.shards:
            shard.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.manifest, self.shards))


def assemble_sharded(
    folder: Path,
    *,
    rows_per_shard: int,
    spec: Spec,
    selection: Selection,
    set_name: str,
    classes: Sequence[str],
    provenance: Mapping[str, Json],
    tables: Mapping[str, SplitTable],
    skipped: Sequence[Skipped] = (),
    donors: Donors,
    arrays: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress | None = None,
) -> Path:
    """As `cache.assemble`, into a folder of shards of at most `rows_per_shard` rows each; returns the folder.

    A shard that stands already, from an assembly that was interrupted or a cache that this one replaces, is kept.
    Raises InvalidOption for more than MOST_SHARDS shards, and what `assemble` raises.
    """
    runs = list(_runs(tables, rows_per_shard, spec.views))
    if len(runs) > MOST_SHARDS:
        raise InvalidOption(
            f"{rows_per_shard:,} rows a shard make {len(runs):,} shards, expected at most {MOST_SHARDS}",
            hint=f"--shard-rows {-(-sum(map(len, tables.values())) // MOST_SHARDS * 11 // 10)} or more",
        )
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Shard] = []
    for number, (split, table) in enumerate(runs):
        path = folder / _shard_name(number, split, table, spec, classes)
        if not _stands(path):
            assemble(
                path,
                spec=spec,
                # On its own a shard must never pass for the whole selection.
                selection=replace(selection, source=f"{selection.source}#shard-{number}-of-{len(runs)}"),
                set_name=set_name,
                classes=classes,
                provenance=provenance,
                tables={split: table},
                donors=donors,
                arrays=arrays,
            )
        with contextlib.closing(StoredFile.open(path)) as file:
            shards.append(Shard.of(file))
        if progress is not None:
            progress(number + 1, len(runs))
    texts = root_texts(
        spec=spec,
        selection=selection,
        set_name=set_name,
        classes=classes,
        provenance=provenance,
        skipped=skipped,
    )
    manifest = Manifest(texts=texts, shards=tuple(shards))
    publish_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    _discard_others(folder, manifest)
    return folder


def _runs(tables: Mapping[str, SplitTable], rows_per_shard: int, views: int) -> Iterator[tuple[str, SplitTable]]:
    """Each split's rows, cut after `rows_per_shard`, never between the views of one image."""
    if rows_per_shard < views:
        raise InvalidOption(f"expected at least {views} rows a shard, one image's views, got {rows_per_shard}")
    for split in SPLITS:
        table = tables.get(split)
        step = rows_per_shard // views * views if split == "train" else rows_per_shard
        for start in range(0, len(table) if table is not None else 0, step):
            assert table is not None
            rows = slice(start, start + step)
            yield (
                split,
                SplitTable(ids=table.ids[rows], labels=table.labels[rows], digests=table.digests[rows]),
            )


def _shard_name(number: int, split: str, table: SplitTable, spec: Spec, classes: Sequence[str]) -> str:
    holds = hashlib.sha256(spec.fingerprint.encode())
    holds.update(canonical_json({"split": split, "classes": list(classes)}).encode())
    holds.update(np.ascontiguousarray(table.labels, "<i8").tobytes())
    holds.update(np.ascontiguousarray(table.digests).tobytes())
    for one in table.ids:
        holds.update(one.encode("utf-8", "surrogateescape") + b"\0")
    return f"{number:05d}-{split}-{holds.hexdigest()[:12]}.h5"


def _stands(path: Path) -> bool:
    try:
        StoredFile.open(path).close()
        return True
    except CacheError:
        return False


def _discard_others(folder: Path, manifest: Manifest) -> None:
    named = {shard.file for shard in manifest.shards}
    for path in folder.glob("*.h5"):
        if path.name not in named:
            # A reader on a desk where open files cannot go keeps it: gc takes it later.
            with contextlib.suppress(OSError):
                path.unlink()


def _opened(folder: Path, shard: Shard, manifest: Manifest) -> StoredFile:
    path = folder / shard.file
    try:
        file = StoredFile.open(path)
    except CacheNotFound as error:
        raise _broken(folder, f"the shard {shard.file} is missing") from error
    except (CacheDamaged, CacheForeign) as error:
        raise _broken(folder, f"the shard {shard.file} cannot be used: {error.message}") from error
    try:
        _require_the_named(file, folder, shard, manifest)
    except BaseException:
        file.close()
        raise
    return file


def _require_the_named(file: StoredFile, folder: Path, shard: Shard, manifest: Manifest) -> None:
    if file.trailer.file_bytes != shard.nbytes:
        raise _broken(folder, f"the shard {shard.file}: expected {shard.nbytes} bytes, got {file.trailer.file_bytes}")
    if trailer_digest(file.trailer) != shard.trailer:
        raise _broken(folder, f"the shard {shard.file} is another file than the one that was written here")
    if Spec.from_json(file.contents.texts["spec"]).fingerprint != manifest.spec.fingerprint:
        raise _broken(folder, f"the shard {shard.file} was computed under another spec")


def _broken(folder: Path, what: str) -> CacheDamaged:
    return CacheDamaged(
        f"{folder}: {what}", hint="bring the file back, or extract again: rows of sound shards are taken over"
    )


def _joined(manifest: Manifest, shards: Sequence[StoredFile]) -> Contents:
    arrays: dict[str, ArrayPlace] = {}
    for shard in shards:
        for name, place in shard.contents.arrays.items():
            before = arrays.get(name)
            arrays[name] = place if before is None else _after(before, place)
    features = {name: one for shard in shards for name, one in shard.contents.features.items()}
    for shard in shards:
        for name, one in shard.contents.features.items():
            if features[name] != one:
                raise CacheForeign(f"{shard.path}: {name} is scaled otherwise than in the other shards")
    return Contents(texts=manifest.texts, arrays=arrays, features=features)


def _after(first: ArrayPlace, second: ArrayPlace) -> ArrayPlace:
    # Ids are as wide as the longest of all.
    dtype = np.promote_types(first.dtype, second.dtype).str
    return ArrayPlace(name=first.name, shape=(first.shape[0] + second.shape[0], *first.shape[1:]), dtype=dtype)
