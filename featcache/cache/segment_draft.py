"""A segment on its way to disk: a range of one split's rows, written as they are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import row_checksums
from featcache.cache.info import CacheInfo
from featcache.cache.layout import checksums_name, features_name, ids_name
from featcache.cache.rows import Rows, read_rows
from featcache.cache.tables import Skipped, SplitTable
from featcache.cache.writer import CacheDraft, Scaling, Tables, tables_beside, text_bytes_of
from featcache.errors import CacheDamaged
from featcache.files import ReadableFile

_BLOCK_BYTES = 8 << 20


class SegmentDraft:
    """One segment that is being written. Its room is reserved, and no row is held in memory.

    Args:
        path: What the file will be called.
        info: What it says of itself, but for targets, which stand in a file beside the segments; images that are
            skipped are added when it is published.
        split: Whose rows it holds.
        table: The rows it is to hold; their targets are not written.
        scaling: Of layers whose values are stored otherwise than they are.

    Raises:
        CacheUnwritable: The disk refuses it.
    """

    def __init__(
        self, path: Path, info: CacheInfo, *, split: str, table: SplitTable, scaling: Scaling | None = None
    ) -> None:
        # On its own a segment must never pass for the whole selection.
        selection = replace(info.selection, source=f"{info.selection.source}#{path.stem}")
        self._info, self._split, self._scaling = replace(info, selection=selection, columns=()), split, scaling
        self._table = table = replace(table, targets={})
        self._written = np.zeros(len(table), np.bool_)
        self._sums = {layer.name: np.zeros(len(table), np.uint64) for layer in info.spec.layers}
        self._draft = self._begin(path, self._beside(table))

    @property
    def path(self) -> Path:
        """What the file will be called."""
        return self._draft.path

    @property
    def written(self) -> npt.NDArray[np.bool_]:
        """Which of its rows have been written: (n,)."""
        return self._written

    def put(self, places: Rows, features: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write rows. `places`: (n,) ascending among the rows it is to hold; `features`: {layer: (n, D)} as stored.

        Raises CacheUnwritable.
        """
        if not len(places):
            return
        # One call for each run of neighbours.
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for layer, rows in features.items():
            stored = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
            self._sums[layer][places] = row_checksums(stored)
            for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(places)], strict=True):
                self._draft.write_rows(features_name(self._split, layer), int(places[begin]), stored[begin:end])
        self._written[places] = True

    def read(self, places: Rows) -> dict[str, npt.NDArray[Any]]:
        """Rows that have been written: {layer: (n, D)}. Raises CacheDamaged where they are not what was written."""
        with ReadableFile(self._draft.tmp_path) as file:
            return {name: self._read_layer(file, name, places) for name in self._sums}

    def _read_layer(self, file: ReadableFile, layer: str, places: Rows) -> npt.NDArray[Any]:
        spec, name = self._info.spec, features_name(self._split, layer)
        shape, dtype = (spec.layer(layer).feature_dim,), np.dtype(spec.dtype).newbyteorder("<").str
        rows = read_rows(file, self._draft.offset_of(name), places, shape, dtype)
        if not np.array_equal(row_checksums(rows), self._sums[layer][places]):
            raise CacheDamaged(f"{self._draft.tmp_path}: rows are not what was written", hint="check the disk")
        return rows

    def publish(self, skipped: Sequence[Skipped] = ()) -> Path:
        """Give it its name; rows that were never written are left out, and `skipped` says why.

        Raises CacheUnwritable, and CacheDamaged where rows that have to be moved are not what was written.
        """
        table, sums = self._table, self._sums
        if not self._written.all() or skipped:
            kept = np.flatnonzero(self._written)
            table, sums = table.take(kept), {layer: values[kept] for layer, values in sums.items()}
            self._move(kept, table, skipped)
        for name, beside in self._beside(table).items():
            self._draft.write_table(name, beside)
        for layer, values in sums.items():
            self._draft.write_table(checksums_name(self._split, layer), values)
        self._draft.publish()
        return self._draft.path

    def discard(self) -> None:
        """Leave nothing behind. A file that was published stays."""
        self._draft.discard()

    def _move(self, kept: Rows, table: SplitTable, skipped: Sequence[Skipped]) -> None:
        """Go on in a file that has room for the rows `kept` alone."""
        whole, self._info = self._draft, replace(self._info, skipped=tuple(skipped))
        moved = self._begin(whole.path, self._beside(table))
        try:
            with ReadableFile(whole.tmp_path) as file:
                for layer in self._info.spec.layers:
                    at_once = max(1, _BLOCK_BYTES // (layer.feature_dim * 4))
                    for start in range(0, len(kept), at_once):
                        rows = self._read_layer(file, layer.name, kept[start : start + at_once])
                        moved.write_rows(features_name(self._split, layer.name), start, rows)
        except BaseException:
            moved.discard()
            raise
        with contextlib.suppress(OSError):
            whole.discard()
        self._draft = moved

    def _beside(self, table: SplitTable) -> Tables:
        return tables_beside(self._split, table, self._info.columns)

    def _begin(self, path: Path, beside: Tables) -> CacheDraft:
        return CacheDraft(
            path,
            self._info,
            rows={self._split: len(beside[ids_name(self._split)])},
            text_bytes=text_bytes_of([beside]),
            scaling=self._scaling,
        )
