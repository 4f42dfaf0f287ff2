"""Is a cache what was written? Quick: trailer, header, tables and targets. Full: every row and every byte between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.cache.checksums import row_checksums
from featcache.cache.layout import checksums_name
from featcache.cache.reader import FeatureArray, FeatureCache
from featcache.cache.targets import is_target_array
from featcache.errors import CacheDamaged, CacheForeign, CacheOutdated

_BLOCK_BYTES = 8 << 20
_ROWS_NAMED = 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong: where (`trailer`, `header`, an array's name, `padding`), what, and in which rows.

    `rows` names the first twenty, `count` says how many there are (0: it is not about rows).
    """

    where: str
    what: str
    rows: tuple[int, ...] = ()
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked and what is wrong with it. `sound`: nothing is."""

    path: Path
    full: bool
    tables: int
    rows: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify(path: str | Path, full: bool = False, progress: Progress | None = None) -> Verification:
    """Check a cache file. Quick: trailer, header and tables; `full`: every row and the padding too.

    Damage is returned, not raised; `progress` is called with bytes of features read and in all. Raises
    CacheNotFound where there is no file, CacheOutdated for one of an earlier featcache.
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
                # Its values must also be among its names.
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
