"""Verify a cache. Quick: trailer, header, tables and targets. Full: also every row and the bytes between arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.cache.checksums import row_checksums
from featcache.cache.layout import checksums_name
from featcache.cache.reader import FeatureArray, FeatureCache
from featcache.cache.targets import is_target_array
from featcache.display import Shown
from featcache.errors import CacheDamaged, CacheForeign, CacheOutdated

_BLOCK_BYTES = 8 << 20
_ROWS_NAMED = 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault of a cache.

    Args:
        where: `file`, the name of an array, or `padding`.
        what: What is wrong.
        rows: The first twenty faulty rows.
        count: The number of faulty rows; 0 where the fault is not in rows.
    """

    where: str
    what: str
    rows: tuple[int, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification(Shown):
    """The result of a verification.

    Args:
        path: The cache.
        full: Whether rows were checked too.
        tables: The number of small arrays that were checked.
        rows: The number of rows that were checked, over all layers and views.
        bytes_read: The bytes of features that were read.
        findings: The faults.
    """

    path: Path
    full: bool
    tables: int
    rows: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there are no faults."""
        return not self.findings


def verify(path: str | Path, full: bool = False, progress: Progress | None = None) -> Verification:
    """Check a cache. Damage is returned, not raised.

    Args:
        path: The file, or the folder of segments.
        full: Whether every row and the bytes between arrays are checked too, not only trailer, header and tables.
        progress: Called with (bytes of features read, bytes in all).

    Returns:
        What was checked, and the faults.

    Raises:
        CacheNotFound: There is no cache at `path`.
        CacheIncomplete: Its extraction has not been finished.
        CacheOutdated: It was written by an earlier featcache.
        CacheUnreadable: It cannot be read now.
    """
    path = Path(path)
    try:
        cache = FeatureCache.open(path)
    except CacheOutdated:
        raise
    except (CacheDamaged, CacheForeign) as error:
        finding = Finding(where="file", what=error.message)
        return Verification(path=path, full=full, tables=0, rows=0, bytes_read=0, findings=(finding,))
    with cache:
        return _Check(cache, full, progress).run()


class _Check:
    def __init__(self, cache: FeatureCache, full: bool, progress: Progress | None) -> None:
        self.cache, self.full, self.progress = cache, full, progress
        self.findings: list[Finding] = []
        self.rows = 0
        self.bytes_read = 0
        self.arrays = [
            cache[split].layer(layer, view)
            for split in cache.splits
            for view in range(cache[split].views)
            for layer in cache.layers
        ]
        self.total = sum(array.nbytes for array in self.arrays)

    def run(self) -> Verification:
        tables = self.cache.file.table_names
        sound_tables = {name for name in tables if self._table_is_sound(name)}
        if self.full:
            for array in self.arrays:
                if checksums_name(array.split.name, array.name, array.view) in sound_tables:
                    self._check_rows(array)
            self._check_padding()
        return Verification(
            path=self.cache.path,
            full=self.full,
            tables=len(tables),
            rows=self.rows,
            bytes_read=self.bytes_read,
            findings=tuple(self.findings),
        )

    def _table_is_sound(self, name: str) -> bool:
        try:
            if is_target_array(name):
                # Its values must also be indices into its names.
                split, _, target = name.split("/", 2)
                self.cache[split].target(target)
            else:
                self.cache.file.read_table(name)
        except (CacheDamaged, CacheForeign) as error:
            self.findings.append(Finding(where=name, what=error.message))
            return False
        return True

    def _check_rows(self, array: FeatureArray) -> None:
        bad: list[int] = []
        try:
            for start, block in array.blocks(_rows_at_once(array), verify=False):
                expected = array.split.checksums(array.name, slice(start, start + len(block)), array.view)
                bad += (np.flatnonzero(row_checksums(block) != expected) + start).tolist()
                self._advance(len(block), block.nbytes)
        except CacheDamaged as error:
            self.findings.append(Finding(where=array.path, what=error.message))
        if bad:
            what = f"{len(bad)} of {len(array)} rows do not match their checksums"
            self.findings.append(Finding(where=array.path, what=what, rows=tuple(bad[:_ROWS_NAMED]), count=len(bad)))

    def _check_padding(self) -> None:
        for offset, data in self.cache.file.padding():
            if any(data):
                self.findings.append(Finding(where="padding", what=f"bytes from {offset} on are not zero"))

    def _advance(self, rows: int, nbytes: int) -> None:
        self.rows += rows
        self.bytes_read += nbytes
        if self.progress is not None:
            self.progress(self.bytes_read, self.total)


def _rows_at_once(array: FeatureArray) -> int:
    return max(1, _BLOCK_BYTES // max(1, array.shape[1] * array.dtype.itemsize))
