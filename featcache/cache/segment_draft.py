"""Write a segment: a range of one split's rows, stored as they are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import DIGEST_BYTES, Digests, row_checksums
from featcache.cache.info import CacheInfo
from featcache.cache.layout import checksums_name, features_name, ids_name, views_in
from featcache.cache.rows import Rows, read_rows
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.writer import CacheDraft, Scaling, Tables, tables_of_split, text_bytes_of
from featcache.errors import CacheDamaged
from featcache.files import ReadableFile

_BLOCK_BYTES = 8 << 20


class SegmentDraft:
    """A segment that is being written. Its disk space is reserved, and no row is kept in memory.

    Args:
        path: The final path of the file.
        info: Its metadata, without targets, which are in a file of their own; skipped images are added when the
            segment is published.
        split: The split of its rows.
        ids: The ids of its rows, in order.
        scaling: The scale and offset of layers that are stored scaled.

    Raises:
        CacheUnwritable: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        info: CacheInfo,
        *,
        split: str,
        ids: Sequence[str],
        scaling: Scaling | None = None,
    ) -> None:
        # A segment alone must not be mistaken for the whole selection.
        selection = replace(info.selection, source=f"{info.selection.source}#{path.stem}")
        self._info, self._split, self._scaling = replace(info, selection=selection, columns=()), split, scaling
        self._ids = ids
        views = range(views_in(info.spec, split))
        self._written = np.zeros((len(views), len(ids)), np.bool_)
        self._sums = {(layer.name, view): np.zeros(len(ids), np.uint64) for view in views for layer in info.spec.layers}
        self._draft = self._begin(path, self._small_arrays(self._table(np.zeros((len(ids), DIGEST_BYTES), np.uint8))))

    @property
    def path(self) -> Path:
        """The final path of the file."""
        return self._draft.path

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """Which of its rows have been written, in every view: (n,)."""
        whole: npt.NDArray[np.bool_] = np.logical_and.reduce(self._written, axis=0)
        return whole

    def put(self, places: Rows, features: Mapping[str, npt.NDArray[Any]], view: int = 0) -> None:
        """Write rows of one view.

        Args:
            places: int64 (n,), ascending positions in the segment.
            features: {layer: (n, D)} in the stored dtype.
            view: 0 for the plain images.

        Raises:
            CacheUnwritable: The rows cannot be written.
        """
        if not len(places):
            return
        # One call for each range of adjacent rows.
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for layer, rows in features.items():
            stored = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
            self._sums[layer, view][places] = row_checksums(stored)
            for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(places)], strict=True):
                self._draft.write_rows(features_name(self._split, layer, view), int(places[begin]), stored[begin:end])
        self._written[view, places] = True

    def read(self, places: Rows, view: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Read rows that have been written: {layer: (n, D)}. Raises CacheDamaged where they were changed on disk."""
        with ReadableFile(self._draft.tmp_path) as file:
            return {name: self._read_layer(file, name, places, view) for name in self._info.spec.layer_names}

    def _read_layer(self, file: ReadableFile, layer: str, places: Rows, view: int) -> npt.NDArray[Any]:
        spec, name = self._info.spec, features_name(self._split, layer, view)
        shape, dtype = (spec.layer(layer).feature_dim,), np.dtype(spec.dtype).newbyteorder("<").str
        rows = read_rows(file, self._draft.offset_of(name), places, shape, dtype)
        if not np.array_equal(row_checksums(rows), self._sums[layer, view][places]):
            raise CacheDamaged(f"{self._draft.tmp_path}: rows are not those that were written", hint="check the disk")
        return rows

    def publish(self, digests: Digests, skipped: Sequence[Skipped] = ()) -> Path:
        """Finish the file under its final path. Rows that were not written in every view are left out.

        Args:
            digests: uint8 (n, 32), the SHA-256 of the image of each planned row.
            skipped: The images that were skipped, with reasons.

        Returns:
            The path.

        Raises:
            CacheUnwritable: The file cannot be written.
            CacheDamaged: Rows that have to be moved were changed on disk.
        """
        table, sums = self._table(digests), self._sums
        if not self._written.all() or skipped:
            kept = np.flatnonzero(self.written)
            table, sums = table.take(kept), {name: values[kept] for name, values in sums.items()}
            self._move(kept, table, skipped)
        for name, values in self._small_arrays(table).items():
            self._draft.write_table(name, values)
        for (layer, view), values in sums.items():
            self._draft.write_table(checksums_name(self._split, layer, view), values)
        self._draft.publish()
        return self._draft.path

    def discard(self) -> None:
        """Remove the unfinished file. A published file stays."""
        self._draft.discard()

    def _move(self, kept: Rows, table: SplitTable, skipped: Sequence[Skipped]) -> None:
        """Continue in a new file that has space for the rows `kept` only."""
        whole, self._info = self._draft, replace(self._info, skipped=tuple(skipped))
        moved = self._begin(whole.path, self._small_arrays(table))
        try:
            with ReadableFile(whole.tmp_path) as file:
                for layer, view in self._sums:
                    name = features_name(self._split, layer, view)
                    at_once = max(1, _BLOCK_BYTES // (self._info.spec.layer(layer).feature_dim * 4))
                    for start in range(0, len(kept), at_once):
                        rows = self._read_layer(file, layer, kept[start : start + at_once], view)
                        moved.write_rows(name, start, rows)
        except BaseException:
            moved.discard()
            raise
        with contextlib.suppress(OSError):
            whole.discard()
        self._draft = moved

    def _table(self, digests: Digests) -> SplitTable:
        return SplitTable(ids=self._ids, digests=digests)

    def _small_arrays(self, table: SplitTable) -> Tables:
        return tables_of_split(self._split, table, ())

    def _begin(self, path: Path, arrays: Tables) -> CacheDraft:
        return CacheDraft(
            path,
            self._info,
            rows={self._split: len(arrays[ids_name(self._split)])},
            text_bytes=text_bytes_of([arrays]),
            scaling=self._scaling,
        )
