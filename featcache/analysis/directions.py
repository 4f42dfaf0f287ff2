"""Features as directions: centred, of length 1, at most 512 wide. The cosine of two images is a product of two rows.

Centring takes away what all images share, which for the positive features behind a ReLU is most of them. Features
wider than 512 go through a Gaussian random projection first (Johnson & Lindenstrauss, 1984): it needs one pass and no
fit, and changes a cosine c by about (1 - c^2) / sqrt(512), which is 0.008 at 0.9. Principal components would need a
pass more, and would drop just those details by which two pictures of one class differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Final

import numpy as np

from featcache.analysis.table import ImageTable
from featcache.analysis.values import Values

WIDEST: Final = 512
# More than this lies in a temporary file, mapped into memory, from which the system may drop it again.
RESIDENT_BYTES: Final = 1 << 30
_BLOCK: Final = 4096

Progress = Callable[[str, int, int], None]


def directions(table: ImageTable, *, seed: int = 0, progress: Progress | None = None) -> Values:
    """Float32 (N, d), d at most 512; the row of an image whose feature is the mean is 0.

    `progress` is called with ("reading", images done, images in all). Raises what `ImageTable.blocks` raises.
    """
    projection = _projection(table.feature_dim, seed)
    wide = table.feature_dim if projection is None else WIDEST
    found = _room(len(table), wide)
    total = np.zeros(wide)
    for start, values in table.blocks():
        block = values if projection is None else values @ projection
        found[start : start + len(block)] = block
        total += block.sum(axis=0, dtype=np.float64)
        if progress is not None:
            progress("reading", start + len(block), len(table))
    mean = (total / max(len(table), 1)).astype(np.float32)
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        # What rounding leaves of the mean is no direction.
        least = 1e-5 * np.linalg.norm(block, axis=1, keepdims=True)
        block -= mean
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block *= np.where(length > least, 1 / np.maximum(length, 1e-30), 0)
    return found


def _projection(feature_dim: int, seed: int) -> Values | None:
    if feature_dim <= WIDEST:
        return None
    return np.random.default_rng(seed).standard_normal((feature_dim, WIDEST), dtype=np.float32)


def _room(rows: int, wide: int) -> Values:
    if 4 * rows * wide <= RESIDENT_BYTES:
        return np.empty((rows, wide), np.float32)
    # The map holds the file, which has no name any more and goes with it.
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, wide))
