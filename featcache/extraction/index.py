"""Which digest an unchanged image has, so that a hit on 60,000 files need not read them.

Key: the image's id and its source's stamp (a file's size, mtime and inode; a zip member's CRC and size; ...).
Value: the SHA-256 of its bytes. The index is a convenience: whatever is wrong with it, the images are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from featcache.cache.filesystem import publishing
from featcache.errors import CacheUnwritable
from featcache.images.samples import SampleRows
from featcache.images.sources import ImageSource, Sample

_MAGIC = b"featcache-digests-1\n"
_KEY_BYTES, _DIGEST_BYTES = 16, 32
_ROW_BYTES = _KEY_BYTES + _DIGEST_BYTES
_ROWS_AT_ONCE = 1 << 16
# A file changed twice within the clock's step may keep its mtime: what is as young as that is read again.
_SETTLED_NS = 2_000_000_000

_Keys = npt.NDArray[np.void]


def index_path(data_dir: Path, origin: str) -> Path:
    """Where the index of a set's digests lies."""
    return data_dir / "digests" / f"{hashlib.sha256(origin.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.index"


@dataclass(frozen=True, kw_only=True, eq=False)
class DigestIndex:
    """Sorted keys (n,) of 16 bytes and the digests (n, 32) uint8 behind them."""

    keys: _Keys = field(default_factory=lambda: np.empty(0, f"V{_KEY_BYTES}"))
    digests: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, _DIGEST_BYTES), np.uint8))

    @classmethod
    def load(cls, path: Path) -> DigestIndex:
        """The index at `path`; an empty one where there is none, or where its bytes are not those that were written."""
        try:
            content = path.read_bytes()
        except OSError:
            return cls()
        # A view: the index of ten million images has 480 MB.
        body = memoryview(content)[len(_MAGIC) : -8]
        sound = content.startswith(_MAGIC) and content[-8:] == xxhash.xxh3_64_digest(body)
        if not sound or len(body) % _ROW_BYTES:
            return cls()
        table = np.frombuffer(body, np.uint8).reshape(-1, _ROW_BYTES)
        keys = np.ascontiguousarray(table[:, :_KEY_BYTES]).view(f"V{_KEY_BYTES}")[:, 0]
        return cls(keys=keys, digests=table[:, _KEY_BYTES:])

    @cached_property
    def _sorted(self) -> npt.NDArray[np.uint64]:
        return _leading(self.keys)

    def find(self, keys: _Keys) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
        """Which of the keys (n,) are known, and their digests (n, 32), zeros where not."""
        found = np.zeros((len(keys), _DIGEST_BYTES), np.uint8)
        if not len(self.keys) or not len(keys):
            return np.zeros(len(keys), np.bool_), found
        # Void compares bytewise only for equality; as big-endian numbers the order is the bytes' own.
        place = np.searchsorted(self._sorted, _leading(keys))
        place = np.minimum(place, len(self.keys) - 1)
        known = self.keys[place] == keys
        found[known] = self.digests[place[known]]
        return known, found


def _leading(keys: _Keys) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys).view(">u8").reshape(len(keys), 2)[:, 0].astype(np.uint64)


def keys_of(source: ImageSource, samples: Sequence[Sample]) -> tuple[_Keys, npt.NDArray[np.bool_]]:
    """The keys of the samples (n,), and which of them have one: a source without stamps is always read."""
    keys = bytearray()
    stamped = np.ones(len(samples), np.bool_)
    for row, sample in enumerate(samples):
        stamp = source.stamp(sample)
        stamped[row] = stamp is not None
        keys += xxhash.xxh3_128_digest(f"{sample.id}\0{stamp}".encode("utf-8", "surrogateescape"))
    return np.frombuffer(keys, f"V{_KEY_BYTES}"), stamped


def save(
    path: Path, source: ImageSource, samples: Sequence[Sample], digests: npt.NDArray[np.uint8], now_ns: int
) -> None:
    """Writes the index of these samples; what changed within two seconds of `now_ns` is left out.

    A folder that cannot be written costs the next run its time, nothing else.
    """
    modified = (source.modified_ns(sample) for sample in samples)
    settled = np.flatnonzero(np.fromiter((_is_settled(when, now_ns) for when in modified), np.bool_, len(samples)))
    keys, stamped = keys_of(source, _taken(samples, settled))
    table = _table(keys[stamped], digests, settled[stamped])
    try:
        with publishing(path, len(_MAGIC) + len(table) + 8) as draft:
            draft.write(_MAGIC, 0)
            if len(table):
                draft.write(table, len(_MAGIC))
            draft.write(xxhash.xxh3_64_digest(table), len(_MAGIC) + len(table))
    except CacheUnwritable:
        return


def _table(keys: _Keys, digests: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> memoryview:
    """Keys (n,) and the digests behind `rows` (n,), side by side in the order of the keys."""
    table = np.empty((len(keys), _ROW_BYTES), np.uint8)
    order = np.argsort(_leading(keys), kind="stable")
    plain = keys.view(np.uint8).reshape(-1, _KEY_BYTES)
    # A piece at a time: whole columns would be there twice.
    for start in range(0, len(order), _ROWS_AT_ONCE):
        some = order[start : start + _ROWS_AT_ONCE]
        table[start : start + len(some), :_KEY_BYTES] = plain[some]
        table[start : start + len(some), _KEY_BYTES:] = digests[rows[some]]
    return table.reshape(-1).data


def _taken(samples: Sequence[Sample], rows: npt.NDArray[np.int64]) -> Sequence[Sample]:
    return samples.take(rows) if isinstance(samples, SampleRows) else [samples[row] for row in rows]


def _is_settled(modified_ns: int | None, now_ns: int) -> bool:
    return modified_ns is None or modified_ns < now_ns - _SETTLED_NS
