"""A file of the digests of unchanged images, so that a hit on 60,000 files need not read them.

Key: the image's id and its source's stamp (a file's size, mtime and inode; a zip member's CRC and size; ...).
Value: the SHA-256 of its bytes. The index only saves time: where it is missing or damaged, the images are read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from featcache.errors import CacheUnwritable
from featcache.files import publishing
from featcache.images.samples import SampleRows
from featcache.images.source import ImageSource

_MAGIC = b"featcache-digests-1\n"
_KEY_BYTES, _DIGEST_BYTES = 16, 32
_ROW_BYTES = _KEY_BYTES + _DIGEST_BYTES
_SUM_BYTES = 8
_KEY = np.dtype(f"V{_KEY_BYTES}")
_ROWS_AT_ONCE = 1 << 14
# A file that changes twice within one step of the clock may keep its mtime: so recently changed files are read again.
_SETTLED_NS = 2_000_000_000

Keys = npt.NDArray[np.void]


def index_path(data_dir: Path, origin: str) -> Path:
    """The path of the index of a set."""
    return data_dir / "digests" / f"{hashlib.sha256(origin.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.index"


def _find(path: Path, keys: Keys) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
    """Look up keys (n,) in the index at `path`; yields the places of those found (m,) and their digests (m, 32).

    The file is read once, in pieces: for ten million images it has 480 MB. Raises OSError, or _NoIndex, at the latest
    after the last piece.
    """
    leading = _leading(keys)
    order = np.argsort(leading)
    done = 0
    with path.open("rb") as file:
        for table in _pieces(file):
            there = np.ascontiguousarray(table[:, :_KEY_BYTES]).view(_KEY)[:, 0]
            sorted_there = _leading(there)
            # Both are sorted, so the keys of this piece directly follow those of the piece before.
            end = int(np.searchsorted(leading, sorted_there[-1], side="right", sorter=order))
            rows, done = order[done:end], end
            place = np.searchsorted(sorted_there, leading[rows])
            same = there[place] == keys[rows]
            yield rows[same], table[place[same], _KEY_BYTES:]


class _NoIndex(Exception):
    """The file is not a valid index."""


def _pieces(file: BinaryIO) -> Iterator[npt.NDArray[np.uint8]]:
    """The rows, uint8 (n, 48), in pieces; raises _NoIndex, at the latest after the last one."""
    left = os.fstat(file.fileno()).st_size - len(_MAGIC) - _SUM_BYTES
    if left < 0 or left % _ROW_BYTES or file.read(len(_MAGIC)) != _MAGIC:
        raise _NoIndex
    read = xxhash.xxh3_64()
    while left:
        content = file.read(min(left, _ROWS_AT_ONCE * _ROW_BYTES))
        if not content or len(content) % _ROW_BYTES:
            raise _NoIndex
        read.update(content)
        left -= len(content)
        yield np.frombuffer(content, np.uint8).reshape(-1, _ROW_BYTES)
    if file.read() != read.digest():
        raise _NoIndex


def _leading(keys: Keys) -> npt.NDArray[np.uint64]:
    # NumPy compares void only for equality; big-endian numbers sort in the order of their bytes.
    return np.ascontiguousarray(keys).view(">u8").reshape(len(keys), 2)[:, 0].astype(np.uint64)


class Index:
    """The digests of some images, as far as an earlier run saved them.

    Args:
        path: The file of the index.
        source, samples: The images, by number.
        reads: Whether the file is used; else all images are read again.

    Attributes:
        noted: Whether the stamp of each image was taken, so that its digest can be saved: bool (n,).
    """

    def __init__(self, path: Path, source: ImageSource, samples: SampleRows, *, reads: bool) -> None:
        self._path, self._source, self._samples, self._reads = path, source, samples, reads
        self.noted = np.zeros(len(samples), np.bool_)
        self._keys = np.zeros((len(samples), _KEY_BYTES), np.uint8)
        # Images whose digest was in the file, and images whose digest may be added to it.
        self._found = np.zeros(len(samples), np.bool_)
        self._new = np.zeros(len(samples), np.bool_)

    def look_up(
        self, numbers: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], known: npt.NDArray[np.bool_]
    ) -> None:
        """Take the stamps of the images `numbers` (m,), and fill in the digests that the file has.

        Args:
            numbers: The images to look up.
            digests: uint8 (n, 32), changed in place.
            known: bool (n,), changed in place: whether each digest is known.
        """
        now_ns, keys, stamped = time.time_ns(), bytearray(), bytearray()
        for sample in self._samples.take(numbers):
            stamp = self._source.stamp(sample)
            stamped.append(stamp is not None)
            keys += xxhash.xxh3_128_digest(f"{sample.id}\0{stamp}".encode("utf-8", "surrogateescape"))
        self._keys[numbers] = np.frombuffer(keys, np.uint8).reshape(-1, _KEY_BYTES)
        has_stamp = np.frombuffer(stamped, np.bool_)
        self.noted[numbers] = True
        if self._reads:
            try:
                for places, found in _find(self._path, self._keys[numbers].view(_KEY)[:, 0]):
                    digests[numbers[places]], known[numbers[places]] = found, True
            except (OSError, _NoIndex):
                known[numbers] = False
            known[numbers] &= has_stamp
        self._found[numbers] = known[numbers]
        new = numbers[has_stamp & ~known[numbers]]
        # Taken before the images are read: a file that changes while it is read has another stamp the next time.
        modified = (self._source.mtime_ns(sample) for sample in self._samples.take(new))
        self._new[new] = np.fromiter((_is_settled(when, now_ns) for when in modified), np.bool_, len(new))

    def save(self, digests: npt.NDArray[np.uint8], known: npt.NDArray[np.bool_]) -> None:
        """Add the known digests to the file: digests uint8 (n, 32), known bool (n,).

        Images that changed within two seconds before they were looked up are left out. Entries of earlier runs are
        kept, until the file has more than twice as many entries as the set has images. Where the folder cannot be
        written, the next run only takes longer.
        """
        if not (self._new & known).any():
            return
        before = _rows_in(self._path) if self._reads else 0
        listed = sum(len(self._source.samples(split)) for split in self._source.splits())
        add = np.flatnonzero(self._new & known)
        if before and before + len(add) <= 2 * listed and self._write(add, digests, before):
            return
        self._write(np.flatnonzero((self._new | self._found) & known), digests, 0)

    def _write(self, numbers: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], before: int) -> bool:
        """Write the rows of some images and the `before` rows of the file; False where the file is not as expected."""
        order = numbers[np.argsort(_leading(self._keys[numbers].view(_KEY)[:, 0]))]
        written, place = xxhash.xxh3_64(), len(_MAGIC)
        end = place + (before + len(order)) * _ROW_BYTES
        try:
            with publishing(self._path, end + _SUM_BYTES) as draft:
                draft.write(_MAGIC, 0)
                for piece in self._merge(order, digests, old=before > 0):
                    written.update(piece)
                    draft.write(piece, place)
                    place += len(piece)
                _require_end(place, end)
                draft.write(written.digest(), end)
        except _NoIndex:
            return False
        except (CacheUnwritable, OSError):
            return True
        self._new[numbers], self._found[numbers] = False, True
        return True

    def _merge(self, order: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], *, old: bool) -> Iterator[bytes]:
        """The rows of the file and of the images `order`, sorted by key, in pieces."""
        leading = _leading(self._keys[order].view(_KEY)[:, 0])
        done = 0
        if old:
            with self._path.open("rb") as file:
                for table in _pieces(file):
                    there = _leading(np.ascontiguousarray(table[:, :_KEY_BYTES]).view(_KEY)[:, 0])
                    end = int(np.searchsorted(leading, there[-1], side="right"))
                    rows = np.vstack([table, self._rows(order[done:end], digests)])
                    yield rows[np.argsort(np.concatenate([there, leading[done:end]]), kind="stable")].tobytes()
                    done = end
        for start in range(done, len(order), _ROWS_AT_ONCE):
            yield self._rows(order[start : start + _ROWS_AT_ONCE], digests).tobytes()

    def _rows(self, numbers: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.hstack([self._keys[numbers], digests[numbers]])


def _require_end(place: int, end: int) -> None:
    if place != end:
        raise _NoIndex


def _rows_in(path: Path) -> int:
    """How many rows an index has; 0 where there is none."""
    try:
        left = path.stat().st_size - len(_MAGIC) - _SUM_BYTES
    except OSError:
        return 0
    return left // _ROW_BYTES if left >= 0 and left % _ROW_BYTES == 0 else 0


def _is_settled(modified_ns: int | None, now_ns: int) -> bool:
    return modified_ns is None or modified_ns < now_ns - _SETTLED_NS
