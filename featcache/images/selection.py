"""`--limit`: which N samples of a split are taken. Balanced, always the same, and contained in every larger N."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from featcache.errors import InvalidOption
from featcache.images.samples import Sample, Samples

_RANK_BYTES = 32


def select(samples: Sequence[Sample], limit: int | None, select_seed: int = 0) -> Sequence[Sample]:
    """At most `limit` of one split's `samples`, in the order in which they came; None: all of them.

    Taken in turn from every class (by label; unlabelled counts as one), within a class in the order of
    SHA-256("<select_seed>/<id>"). So class sizes differ by at most one until a class is used up, and neither
    the order of `samples` nor other samples of other classes change which of a class come first.
    Raises InvalidOption for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidOption(f"the limit must be at least 1, got {limit}")
    if limit is None or limit >= len(samples):
        return samples
    if isinstance(samples, Samples):
        return samples.take(_chosen(samples.labels, samples.ids(), limit, select_seed))
    labels = np.array([sample.label for sample in samples], np.int64)
    rows = _chosen(labels, (sample.id for sample in samples), limit, select_seed)
    return [samples[row] for row in rows.tolist()]


def _chosen(labels: npt.NDArray[np.int64], ids: Iterable[str], limit: int, select_seed: int) -> npt.NDArray[np.int64]:
    """The rows of the first `limit` in turn, ascending."""
    ranks = np.empty((len(labels), _RANK_BYTES), np.uint8)
    for row, sample_id in enumerate(ids):
        ranks[row] = np.frombuffer(_rank(sample_id, select_seed), np.uint8)
    # As big-endian numbers, digests compare as their bytes do; the last key is the first to be sorted by.
    keys = ranks.view(">u8")
    order = np.lexsort((*(keys[:, column] for column in reversed(range(keys.shape[1]))), labels))
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(first, sizes)
    in_turn = order[np.lexsort((labels[order], turn))]
    return np.sort(in_turn[:limit])


def _rank(sample_id: str, select_seed: int) -> bytes:
    return hashlib.sha256(f"{select_seed}/{sample_id}".encode()).digest()
