"""Features as directions: centred, of length 1, at most 512 wide. The cosine of two images is a product of two rows.

Centring takes away what all images share, which for the positive features behind a ReLU is most of them. Features
wider than 512 go through a Gaussian random projection first (Johnson & Lindenstrauss, 1984): it needs one pass and no
fit, and changes a cosine c by about (1 - c^2) / sqrt(512), which is 0.008 at 0.9. Principal components would need a
pass more, and would drop just those details by which two pictures of one class differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
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
    found, mean = _projected(table, lambda values: values, seed, progress)
    for block in _blocks(found):
        # What rounding leaves of the mean is no direction.
        least = 1e-5 * np.linalg.norm(block, axis=1, keepdims=True)
        block -= mean
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block *= np.where(length > least, 1 / np.maximum(length, 1e-30), 0)
    return found


def compositions(table: ImageTable, *, seed: int = 0, progress: Progress | None = None) -> Values:
    """What each image is made of, whatever the strength of its feature: float32 (N, d), d at most 512, of length 1.

    Of every value the root is taken and keeps its sign (power normalisation, Perronnin et al., ECCV 2010), so that no
    few large ones decide. Nothing is centred before rows get their length: what all photographs share and a foreign
    image lacks is what tells it. `progress`, and what it raises: as `directions`.
    """
    found, _ = _projected(table, lambda values: np.sign(values) * np.sqrt(np.abs(values)), seed, progress)
    for block in _blocks(found):
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
    return found


def _projected(
    table: ImageTable, change: Callable[[Values], Values], seed: int, progress: Progress | None
) -> tuple[Values, Values]:
    """All features, changed, at most 512 wide: float32 (N, d), and their mean (d,)."""
    projection = _projection(table.feature_dim, seed)
    wide = table.feature_dim if projection is None else WIDEST
    found = _room(len(table), wide)
    total = np.zeros(wide)
    for start, values in table.blocks():
        changed = change(values)
        block = changed if projection is None else changed @ projection
        found[start : start + len(block)] = block
        total += block.sum(axis=0, dtype=np.float64)
        if progress is not None:
            progress("reading", start + len(block), len(table))
    return found, (total / max(len(table), 1)).astype(np.float32)


def _blocks(rows: Values) -> Iterator[Values]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]


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
