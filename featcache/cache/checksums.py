"""Digests and checksums: SHA-256 identifies the image of a row, xxh3 detects changed bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from featcache.errors import InvalidOption
from featcache.files import Buffer

Array = npt.NDArray[np.generic]
Checksums = npt.NDArray[np.uint64]
Digests = npt.NDArray[np.uint8]
DIGEST_BYTES = 32


def as_digests(digests: Any) -> Digests:
    """SHA-256 digests as a C-contiguous uint8 (N, 32) table. Raises InvalidOption for another dtype or shape."""
    given = np.asarray(digests)
    if given.dtype != np.uint8 or given.ndim != 2 or given.shape[1] != DIGEST_BYTES:
        raise InvalidOption(f"digests: expected uint8 (N, {DIGEST_BYTES}), got {given.dtype} {given.shape}")
    return np.ascontiguousarray(given)


def leading_numbers(digests: Digests) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each digest as a number: (n, 32) -> (n,). Nearly always unique, and fast to sort."""
    return np.ascontiguousarray(as_digests(digests).view("<u8")[:, 0])


def row_checksums(rows: Array) -> Checksums:
    """xxh3 (64 bits, seed 0) of the bytes of each row: (n, ...) any dtype -> (n,) uint64."""
    if not rows.size:
        return np.zeros(len(rows), np.uint64)
    view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    row_bytes = len(view) // len(rows)
    of = xxhash.xxh3_64_intdigest
    sums = [of(view[start : start + row_bytes]) for start in range(0, len(view), row_bytes)]
    return np.array(sums, np.uint64)


def table_digest(data: Buffer | Array) -> str:
    """xxh3 (128 bits, seed 0) of all bytes: 32 hexadecimal digits."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return xxhash.xxh3_128_hexdigest(data)
