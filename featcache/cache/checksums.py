"""The digests: SHA-256 says which image a row belongs to, xxh3 whether bytes are those that were written."""

from __future__ import annotations

import hashlib
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


def row_digests(images: Digests, views: int) -> Digests:
    """The digests of rows that hold `views` augmented views per image, image-major: (N, 32) -> (N x views, 32).

    The first view has the image's own digest; view v has SHA-256(image digest + v as 4 bytes, little-endian). So
    rows are found by digest and no view is taken for another.
    """
    images = as_digests(images)
    if views == 1:
        return images
    return view_digests(np.repeat(images, views, axis=0), np.tile(np.arange(views), len(images)))


def view_digests(images: Digests, views: npt.NDArray[np.int64]) -> Digests:
    """The same row by row: the digests (n, 32) of the images behind rows, and which view each is (n,) -> (n, 32)."""
    images = as_digests(images)
    augmented = np.flatnonzero(views)
    rows = images.copy() if len(augmented) else images
    for row in augmented.tolist():
        content = rows[row].tobytes() + int(views[row]).to_bytes(4, "little")
        rows[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return rows


def leading_numbers(digests: Digests) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each digest as a number: (n, 32) -> (n,). They tell nearly all apart, and sort fast."""
    return np.ascontiguousarray(as_digests(digests).view("<u8")[:, 0])


def row_checksums(rows: Array) -> Checksums:
    """xxh3 (64 bits, seed 0) over the bytes of each row: (n, ...) any dtype -> (n,) uint64."""
    if not rows.size:
        return np.zeros(len(rows), np.uint64)
    view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    row_bytes = len(view) // len(rows)
    of = xxhash.xxh3_64_intdigest
    sums = [of(view[start : start + row_bytes]) for start in range(0, len(view), row_bytes)]
    return np.array(sums, np.uint64)


def table_digest(data: Buffer | Array) -> str:
    """xxh3 (128 bits, seed 0) over all bytes: 32 hexadecimal digits."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return xxhash.xxh3_128_hexdigest(data)
