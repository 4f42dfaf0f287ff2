"""Which digest an unchanged image has, so that a hit on 60,000 files need not read them.

Key: the image's id and its source's stamp (a file's size, mtime and inode; a zip member's CRC and size; ...).
Value: the SHA-256 of its bytes. The index is a convenience: whatever is wrong with it, the images are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from featcache.errors import CacheUnwritable
from featcache.files import publishing
from featcache.images.sources import ImageSource, Sample

_MAGIC = b"featcache-digests-1\n"
_KEY_BYTES, _DIGEST_BYTES = 16, 32
_ROW_BYTES = _KEY_BYTES + _DIGEST_BYTES
_SUM_BYTES = 8
_KEY = np.dtype(f"V{_KEY_BYTES}")
_ROWS_AT_ONCE = 1 << 14
# A file changed twice within the clock's step may keep its mtime: what is as young as that is read again.
_SETTLED_NS = 2_000_000_000

Keys = npt.NDArray[np.void]


def index_path(data_dir: Path, origin: str) -> Path:
    """Where the index of a set's digests lies."""
    return data_dir / "digests" / f"{hashlib.sha256(origin.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.index"


def look_up(path: Path, keys: Keys) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """Which of the keys (n,) the index at `path` knows, and their digests (n, 32) uint8, zeros where it does not.

    The file is read once, a piece at a time: that of ten million images has 480 MB. One that is not there, or whose
    bytes are not those that were written, knows nothing.
    """
    known, digests = np.zeros(len(keys), np.bool_), np.zeros((len(keys), _DIGEST_BYTES), np.uint8)
    leading = _leading(keys)
    order = np.argsort(leading)
    done = 0
    try:
        with path.open("rb") as file:
            for table in _pieces(file):
                there = np.ascontiguousarray(table[:, :_KEY_BYTES]).view(_KEY)[:, 0]
                sorted_there = _leading(there)
                # Both are sorted, so what this piece may know stands right behind what the one before did.
                end = int(np.searchsorted(leading, sorted_there[-1], side="right", sorter=order))
                rows, done = order[done:end], end
                place = np.searchsorted(sorted_there, leading[rows])
                same = there[place] == keys[rows]
                known[rows[same]] = True
                digests[rows[same]] = table[place[same], _KEY_BYTES:]
    except (OSError, _NoIndex):
        known[:], digests[:] = False, 0
    return known, digests


class _NoIndex(Exception):
    """The bytes are not those of an index."""


def _pieces(file: BinaryIO) -> Iterator[npt.NDArray[np.uint8]]:
    """The rows (n, 48) uint8, some at a time; raises _NoIndex at the latest behind the last one."""
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
    # Void compares bytewise only for equality; as big-endian numbers the order is the bytes' own.
    return np.ascontiguousarray(keys).view(">u8").reshape(len(keys), 2)[:, 0].astype(np.uint64)


def keys_of(source: ImageSource, samples: Sequence[Sample]) -> tuple[Keys, npt.NDArray[np.bool_]]:
    """The keys of the samples (n,), and which of them have one: a source without stamps is always read."""
    keys = bytearray(_KEY_BYTES * len(samples))
    stamped = np.ones(len(samples), np.bool_)
    for row, sample in enumerate(samples):
        stamp = source.stamp(sample)
        stamped[row] = stamp is not None
        key = xxhash.xxh3_128_digest(f"{sample.id}\0{stamp}".encode("utf-8", "surrogateescape"))
        keys[row * _KEY_BYTES : (row + 1) * _KEY_BYTES] = key
    return np.frombuffer(keys, _KEY), stamped


def save(
    path: Path, source: ImageSource, samples: Sequence[Sample], digests: npt.NDArray[np.uint8], now_ns: int
) -> None:
    """Writes the index of these samples; what changed within two seconds of `now_ns` is left out.

    A folder that cannot be written costs the next run its time, nothing else.
    """
    modified = (source.modified_ns(sample) for sample in samples)
    kept = np.fromiter((_is_settled(when, now_ns) for when in modified), np.bool_, len(samples))
    keys, stamped = keys_of(source, samples)
    order = np.argsort(_leading(keys))
    order = order[(kept & stamped)[order]]
    written = xxhash.xxh3_64()
    end = len(_MAGIC) + len(order) * _ROW_BYTES
    try:
        with publishing(path, end + _SUM_BYTES) as draft:
            draft.write(_MAGIC, 0)
            # A piece at a time: the whole table would be there beside keys and digests.
            for start in range(0, len(order), _ROWS_AT_ONCE):
                rows = order[start : start + _ROWS_AT_ONCE]
                piece = np.hstack([keys[rows].view(np.uint8).reshape(-1, _KEY_BYTES), digests[rows]]).tobytes()
                written.update(piece)
                draft.write(piece, len(_MAGIC) + start * _ROW_BYTES)
            draft.write(written.digest(), end)
    except CacheUnwritable:
        return


def _is_settled(modified_ns: int | None, now_ns: int) -> bool:
    return modified_ns is None or modified_ns < now_ns - _SETTLED_NS
