"""Finds candidates for duplicates: the pairs of images with the highest cosine.

All pairs are compared by matrix products, a block of rows with all rows after it, so memory is bounded by one block.
The least cosine of a pair is estimated from the features, because it differs between backbones: it is the cosine at
which an image has 20 pairs on average, on a sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from featcache.analysis.values import Rows, Values, thin
from featcache.progress import StageProgress

if TYPE_CHECKING:
    from torch import Tensor


PAIRS_PER_IMAGE: Final = 20
LEAST_COSINE: Final = 0.4
# The most pairs that an image keeps with later images, if nearly all images are similar.
MOST_PAIRS: Final = 64
_SAMPLED: Final = 256
_BLOCK_BYTES: Final = 128 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Image numbers `first` < `second`, int64 (P,), and their `cosine`, float32 (P,), which is at least `floor`.

    `cut`: the number of images that had more than MOST_PAIRS such pairs with later images, of which those are left out
    that are not the nearest.
    """

    first: Rows
    second: Rows
    cosine: npt.NDArray[np.float32]
    floor: float
    cut: int

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Pairs:
        """The pairs where the mask `chosen`, bool (P,), is true."""
        return replace(self, first=self.first[chosen], second=self.second[chosen], cosine=self.cosine[chosen])


def near_pairs(directions: Values, *, device: str = "cpu", progress: StageProgress | None = None) -> Pairs:
    """The nearest pairs of rows of `directions`, float32 (N, d), of length 1.

    `device`: the torch device of the matrix products. `progress` is called with ("comparing", images done, images in
    all).
    """
    import torch

    rows = torch.from_numpy(directions).to(device)
    floor = _floor(rows)
    step = max(1, min(1024, _BLOCK_BYTES // (4 * max(1, len(rows)))))
    blocks: list[tuple[Tensor, Tensor, Tensor]] = []
    cut = 0
    for start in range(0, len(rows), step):
        block, cut_here = _block(rows, start, step, floor)
        blocks.append(block)
        cut += cut_here
        if progress is not None:
            progress("comparing", min(start + step, len(rows)), len(rows))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*blocks, strict=True)] if blocks else [np.empty(0)] * 3
    return Pairs(
        first=columns[0].astype(np.int64),
        second=columns[1].astype(np.int64),
        cosine=columns[2].astype(np.float32),
        floor=floor,
        cut=cut,
    )


def _floor(rows: Tensor) -> float:
    sample = thin(len(rows), _SAMPLED)
    wanted = PAIRS_PER_IMAGE * len(sample)
    # Of few images all pairs are compared: their cosines around their own mean say little.
    if len(rows) <= 2 * PAIRS_PER_IMAGE:
        return -1.0
    nearness = rows[sample] @ rows.T
    # An image does not form a pair with itself.
    nearness[range(len(sample)), sample] = -1
    return max(LEAST_COSINE, float(nearness.flatten().topk(wanted).values[-1]))


def _block(rows: Tensor, start: int, step: int, floor: float) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """The pairs of a block of rows with later rows (first, second, cosine), and how many rows have lost some."""
    import torch

    some = rows[start : start + step]
    nearness = some @ rows[start:].T
    # Only later rows, so that each pair is compared once.
    nearness[:, : len(some)].triu_(1)
    near = nearness >= floor
    if int(near.count_nonzero()) > MOST_PAIRS * len(some):
        values, after = nearness.topk(min(MOST_PAIRS, nearness.shape[1]), dim=1)
        kept = values >= floor
        first = torch.arange(start, start + len(some), device=rows.device)[:, None].expand_as(values)
        cut = int((near.count_nonzero(dim=1) > MOST_PAIRS).count_nonzero())
        return (first[kept], start + after[kept], values[kept]), cut
    first, after = near.nonzero(as_tuple=True)
    return (start + first, start + after, nearness[first, after]), 0
