"""Implements `--limit`: a class-balanced, deterministic choice of N samples, contained in that of every larger N."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from featcache.errors import InvalidOption
from featcache.images.samples import Sample, Samples

_RANK_BYTES = 32


def select(samples: Sequence[Sample], limit: int | None, select_seed: int = 0) -> Sequence[Sample]:
    """Select at most `limit` samples of one split, balanced over the classes.

    Samples are taken from the classes in turn (by label; unlabelled counts as a class), within a class in the order
    of SHA-256("<select_seed>/<id>"). So class sizes differ by at most one until a class is used up, and the order
    within a class depends neither on the order of `samples` nor on other classes.

    Args:
        samples: The samples of one split.
        limit: The greatest number of samples; None: all.
        select_seed: Another seed gives another selection.

    Returns:
        The selected samples, in the order of `samples`.

    Raises:
        InvalidOption: A limit below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidOption(f"the limit must be at least 1, got {limit}")
    if limit is None or limit >= len(samples):
        return samples
    if isinstance(samples, Samples):
        return samples.take(_select_rows(samples.labels, samples.ids(), limit, select_seed))
    labels = np.array([sample.label for sample in samples], np.int64)
    rows = _select_rows(labels, (sample.id for sample in samples), limit, select_seed)
    return [samples[row] for row in rows.tolist()]


def _select_rows(
    labels: npt.NDArray[np.int64], ids: Iterable[str], limit: int, select_seed: int
) -> npt.NDArray[np.int64]:
    """The rows of the selected samples, ascending: int64 (limit,)."""
    ranks = np.empty((len(labels), _RANK_BYTES), np.uint8)
    for row, sample_id in enumerate(ids):
        ranks[row] = np.frombuffer(_rank(sample_id, select_seed), np.uint8)
    # As big-endian numbers, digests compare like their bytes; `lexsort` sorts by the last key first.
    keys = ranks.view(">u8")
    order = np.lexsort((*(keys[:, column] for column in reversed(range(keys.shape[1]))), labels))
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.arange(len(order)) - np.repeat(first, sizes)
    in_turn = order[np.lexsort((labels[order], turn))]
    return np.sort(in_turn[:limit])


def _rank(sample_id: str, select_seed: int) -> bytes:
    return hashlib.sha256(f"{select_seed}/{sample_id}".encode()).digest()
