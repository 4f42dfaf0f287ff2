"""Write a cache file: libhdf5 lays it out in memory, rows are written at their offsets, then it gets its final name.

A segment and a packed cache are the same kind of file. Memory use does not grow with the number of rows, and the same
arguments give the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import row_checksums, table_digest
from featcache.cache.donors import Donor, Donors, Located
from featcache.cache.header import build_header
from featcache.cache.info import CacheInfo, FileInfo
from featcache.cache.layout import SPLITS, checksums_name, features_name, ids_name, is_table, views_in
from featcache.cache.spec import LayerSpec, Spec
from featcache.cache.splits import CachedSplit
from featcache.cache.tables import SplitTable, encode_ids
from featcache.cache.targets import Column, Target, array_name
from featcache.cache.trailer import Trailer
from featcache.errors import CacheDamaged, CacheForeign, CacheIncomplete, InvalidOption
from featcache.files import begin_draft, system

_BLOCK_BYTES = 8 << 20
_NO_DIGEST = "0" * 32
Progress = Callable[[int, int], None]
#: By layer: value = stored x scale + offset.
Scaling = Mapping[str, tuple[float, float]]


class CacheDraft:
    """A cache file that is being written. Rows may be written in any order, each table once.

    Args:
        path: The final path of the file.
        info: Its metadata.
        rows: The number of rows of each split.
        text_bytes: The length in bytes of the longest text of each text array, by the array's name.
        scaling: The scale and offset of layers that are stored scaled.

    Raises:
        InvalidOption: `scaling` names a layer that is not stored.
        CacheUnwritable: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        info: FileInfo,
        *,
        rows: Mapping[str, int],
        text_bytes: Mapping[str, int],
        scaling: Scaling | None = None,
    ) -> None:
        self.path, self._about = path, info.about(rows)
        arrays = info.arrays(rows, text_bytes)
        self._header = build_header(arrays, info.texts(), info.attributes(rows, scaling or {}), info.format)
        self._digests = {place.name: _NO_DIGEST for place in arrays if is_table(place.name)}
        ends = (place.offset + place.nbytes for place in self._header.arrays.values() if place.nbytes)
        self._trailer_offset = -(-max(ends, default=len(self._header.data)) // 8) * 8
        self._size = self._final_size()
        self._draft = begin_draft(path, self._size)
        try:
            self._draft.write(self._header.data, 0)
        except BaseException:
            self._draft.discard()
            raise

    @property
    def tmp_path(self) -> Path:
        """The path of the file until it is published."""
        return self._draft.tmp_path

    @property
    def trailer(self) -> Trailer:
        """The trailer, once all tables are written."""
        return self._trailer(self._size)

    def offset_of(self, name: str) -> int:
        """The offset of an array, in bytes."""
        return self._header.arrays[name].offset

    def write_table(self, name: str, table: npt.NDArray[Any]) -> None:
        """Write a whole small array. Raises CacheUnwritable."""
        stored = np.ascontiguousarray(table, self._header.arrays[name].dtype)
        self._digests[name] = table_digest(stored)
        self._write(stored, self._header.arrays[name].offset)

    def write_rows(self, name: str, first: int, rows: npt.NDArray[Any]) -> None:
        """Write rows (n, D) of an array, in the stored dtype, from row `first` on. Raises CacheUnwritable."""
        place = self._header.arrays[name]
        if rows.dtype != np.dtype(place.dtype) or rows.shape[1:] != place.shape[1:]:
            raise InvalidOption(
                f"{name}: expected rows of {place.shape[1:]} {np.dtype(place.dtype).name}, "
                f"got {rows.shape[1:]} {rows.dtype.name}"
            )
        self._write(np.ascontiguousarray(rows), place.offset + first * (place.nbytes // max(1, place.shape[0])))

    def publish(self) -> None:
        """Finish the file under its final path. Raises CacheUnwritable."""
        try:
            self._draft.write(self.trailer.to_bytes(), self._trailer_offset)
            self._draft.publish()
        except BaseException:
            self._draft.discard()
            raise

    def discard(self) -> None:
        """Remove the unfinished file. A published file stays."""
        self._draft.discard()

    def _write(self, values: npt.NDArray[Any], offset: int) -> None:
        if values.nbytes:
            self._draft.write(values.reshape(-1).view(np.uint8).data, offset)

    def _final_size(self) -> int:
        # Digests have a fixed length, so the size is known before any row. The trailer contains the size itself, so
        # it is computed until it no longer changes.
        size, last = 0, -1
        while size != last:
            size, last = self._trailer_offset + len(self._trailer(size).to_bytes()), size
        return size

    def _trailer(self, size: int) -> Trailer:
        return Trailer(
            file_bytes=size,
            header_bytes=len(self._header.data),
            header_digest=table_digest(self._header.data),
            tables=self._digests,
            about=self._about,
        )


# --- a whole cache in one file -----------------------------------------------------------------------------


def write_packed(
    path: Path,
    info: CacheInfo,
    *,
    tables: Mapping[str, SplitTable],
    donors: Donors,
    scaling: Scaling | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a cache into one file, in blocks, from the rows of donors.

    A file that exists at `path` is replaced in one step; after an error it is unchanged.

    Args:
        path: The path of the file.
        info: Its metadata.
        tables: The rows of each split, in order, with the values of every target of `info`.
        donors: The sources of the rows, which are found by digest.
        scaling: The scale and offset of layers that are stored scaled.
        progress: Called with (bytes of features written, bytes in all).

    Returns:
        `path`.

    Raises:
        CacheIncomplete: A row is missing.
        CacheDamaged: A donor's row does not match its checksum.
        CacheForeign: A donor's rows were computed with another spec.
        InvalidOption: The tables do not fit together.
        CacheUnwritable: The file cannot be written.
    """
    spec, ordered = info.spec, _in_order(tables)
    _require_same_spec(donors.donors, spec)
    arrays = {split: tables_of_split(split, table, info.columns) for split, table in ordered.items()}
    located = {
        (split, view): donors.locate(table.digests, view=view)
        for split, table in ordered.items()
        for view in range(views_in(spec, split))
    }
    _require_all(located)
    draft = CacheDraft(
        path,
        info,
        rows={split: len(table) for split, table in ordered.items()},
        text_bytes=text_bytes_of(arrays.values()),
        scaling=scaling,
    )
    try:
        advance = _Advance(progress, _feature_bytes(spec, ordered))
        for split in ordered:
            for name, values in arrays[split].items():
                draft.write_table(name, values)
            for view, layer in itertools.product(range(views_in(spec, split)), spec.layers):
                _copy_layer(draft, (split, view), layer, donors, located[split, view], advance)
        if not system.replaces_open_files:
            # An increment copies from the file that it replaces.
            _close(donors.donors)
    except BaseException:
        draft.discard()
        raise
    draft.publish()
    return path


Tables = Mapping[str, npt.NDArray[Any]]


def tables_of_split(split: str, table: SplitTable, columns: Sequence[Column]) -> Tables:
    """The small arrays of a split by name: ids, digests and the values of each target.

    Raises InvalidOption where the targets of the table are not those of the columns, or a value does not fit.
    """
    return {**ids_and_targets(split, table, columns), f"{split}/digests": table.digests}


def ids_and_targets(split: str, table: SplitTable, columns: Sequence[Column]) -> Tables:
    """The same without the digests, for the targets file of a cache in segments."""
    named = {column.name for column in columns}
    if named != set(table.targets):
        raise InvalidOption(f"{split}: expected values of {sorted(named)}, got values of {sorted(table.targets)}")
    targets = [Target(column=column, values=table.targets[column.name]) for column in columns]
    return {
        ids_name(split): encode_ids(split, table.ids),
        **{array_name(split, target.name): target.values for target in targets},
    }


def text_bytes_of(tables: Iterable[Tables]) -> dict[str, int]:
    """The length in bytes of the longest text of each text array."""
    return {name: values.itemsize for some in tables for name, values in some.items() if values.dtype.kind == "S"}


class _Advance:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _feature_bytes(spec: Spec, tables: Mapping[str, SplitTable]) -> int:
    width = sum(layer.feature_dim for layer in spec.layers) * np.dtype(spec.dtype).itemsize
    return sum(len(table) * views_in(spec, split) for split, table in tables.items()) * width


def _copy_layer(
    draft: CacheDraft, part: tuple[str, int], layer: LayerSpec, donors: Donors, located: Located, advance: _Advance
) -> None:
    """Copy a layer of `part`: a split and a view of its images."""
    (split, view), rows = part, len(located.row)
    name = features_name(split, layer.name, view)
    sums = donors.checksums(layer.name, located, view) if rows else np.empty(0, np.uint64)
    at_once = max(1, _BLOCK_BYTES // (layer.feature_dim * 4))
    for start in range(0, rows, at_once):
        block = donors.gather(layer.name, located.take(slice(start, start + at_once)), view)
        if not np.array_equal(row_checksums(block), sums[start : start + at_once]):
            raise CacheDamaged(f"{name}: rows from {start} on changed while they were copied")
        draft.write_rows(name, start, block)
        advance(block.nbytes)
    draft.write_table(checksums_name(split, layer.name, view), sums)


def _close(donors: Sequence[Donor]) -> None:
    for donor in donors:
        if isinstance(donor, CachedSplit):
            donor.file.close()


def _in_order(tables: Mapping[str, SplitTable]) -> dict[str, SplitTable]:
    unknown = [split for split in tables if split not in SPLITS]
    if unknown:
        raise InvalidOption(f"expected splits among {', '.join(SPLITS)}, got {', '.join(map(repr, unknown))}")
    if not any(len(table) for table in tables.values()):
        raise InvalidOption("expected at least one row, got none", hint="perhaps every image was skipped")
    return {split: tables[split] for split in SPLITS if split in tables}


def _require_all(located: Mapping[tuple[str, int], Located]) -> None:
    missing = {
        f"{split}{f' (view {view})' if view else ''}": int((where.donor < 0).sum())
        for (split, view), where in located.items()
    }
    if any(missing.values()):
        listed = ", ".join(f"{count} of {split}" for split, count in missing.items() if count)
        raise CacheIncomplete(
            f"rows are missing: {listed}", hint="run the same extraction again: it computes what is missing"
        )


def _require_same_spec(donors: Sequence[Donor], spec: Spec) -> None:
    for donor in donors:
        donor_spec = getattr(donor, "spec", None)
        if donor.fingerprint == spec.fingerprint:
            continue
        if not isinstance(donor_spec, Spec) or not serves(donor_spec, spec):
            raise CacheForeign(
                f"a donor has fingerprint {donor.fingerprint[:8]}, expected {spec.fingerprint[:8]}",
                hint="only rows computed with the same spec can be copied",
            )


def serves(spec: Spec, wanted: Spec) -> bool:
    """Whether the rows of a spec can be reused for another: the two differ at most in more layers and in views.

    View k of an image is the same for any number of views; the plain view is the same for any augmentation.
    """
    if not set(wanted.layer_names) <= set(spec.layer_names):
        return False
    alike = spec.with_layers(wanted.layer_names)
    if 1 in (alike.views, wanted.views):
        return alike.without_views().fingerprint == wanted.without_views().fingerprint
    return replace(alike, views=wanted.views).fingerprint == wanted.fingerprint
