"""Features as unit vectors with at most 512 values, so that a dot product of two rows is a cosine.

Centring removes what all images share, which is the largest part of the positive features behind a ReLU. Features
with more than 512 values go through a Gaussian random projection first (Johnson & Lindenstrauss, 1984): it needs one
pass and no fit, and changes a cosine c by about (1 - c^2) / sqrt(512), which is 0.008 at 0.9. Principal components
would need another pass, and would drop the details by which two pictures of one class differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from featcache.analysis.table import ImageTable
from featcache.analysis.values import Values
from featcache.progress import StageProgress

WIDEST: Final = 512
# Larger arrays are memory-mapped temporary files, so that the system can free their memory.
RESIDENT_BYTES: Final = 1 << 30
_BLOCK: Final = 4096


def directions(table: ImageTable, *, seed: int = 0, progress: StageProgress | None = None) -> Values:
    """Centred features of length 1: float32 (N, d), d at most 512; 0 for an image whose feature is the mean.

    `progress` is called with ("reading", images done, images in all). Raises what `ImageTable.blocks` raises.
    """
    rows, mean = _project_features(table, lambda values: values, seed, progress)
    for block in _blocks(rows):
        # A remainder of rounding is not a direction.
        least = 1e-5 * np.linalg.norm(block, axis=1, keepdims=True)
        block -= mean
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block *= np.where(length > least, 1 / np.maximum(length, 1e-30), 0)
    return rows


def root_directions(table: ImageTable, *, seed: int = 0, progress: StageProgress | None = None) -> Values:
    """Signed square roots of the features, scaled to length 1: float32 (N, d), d at most 512.

    The roots (power normalisation, Perronnin et al., ECCV 2010) keep a few large values from dominating. Nothing is
    centred: a foreign image is recognised by lacking what all photographs share. `progress` and exceptions: as
    `directions`.
    """
    rows, _ = _project_features(table, lambda values: np.sign(values) * np.sqrt(np.abs(values)), seed, progress)
    for block in _blocks(rows):
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
    return rows


def _project_features(
    table: ImageTable, change: Callable[[Values], Values], seed: int, progress: StageProgress | None
) -> tuple[Values, Values]:
    """All features after `change`, projected to at most 512 values: float32 (N, d), and their mean (d,)."""
    projection = _projection(table.feature_dim, seed)
    wide = table.feature_dim if projection is None else WIDEST
    rows = _allocate(len(table), wide)
    total = np.zeros(wide)
    for start, values in table.blocks():
        changed = change(values)
        block = changed if projection is None else changed @ projection
        rows[start : start + len(block)] = block
        total += block.sum(axis=0, dtype=np.float64)
        if progress is not None:
            progress("reading", start + len(block), len(table))
    return rows, (total / max(len(table), 1)).astype(np.float32)


def _blocks(rows: Values) -> Iterator[Values]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK]


def _projection(feature_dim: int, seed: int) -> Values | None:
    if feature_dim <= WIDEST:
        return None
    return np.random.default_rng(seed).standard_normal((feature_dim, WIDEST), dtype=np.float32)


def _allocate(rows: int, wide: int) -> Values:
    if 4 * rows * wide <= RESIDENT_BYTES:
        return np.empty((rows, wide), np.float32)
    # The memory map keeps the unnamed file open; the file is deleted together with the map.
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, wide))
