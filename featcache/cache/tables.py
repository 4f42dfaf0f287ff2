"""The rows of a split as a table: ids, labels and digests, and the images that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.checksums import Digests, as_digests
from featcache.cache.spec import Json
from featcache.errors import InvalidOption


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image that could not be used.

    Args:
        id, split: Which one.
        reason: Why, in a sentence.
        digest: SHA-256 of its bytes, hexadecimal; None where they could not be read.
    """

    id: str
    split: str
    reason: str
    digest: str | None = None

    def as_json(self) -> dict[str, Json]:
        """The plain mapping that is stored."""
        return {"id": self.id, "split": self.split, "reason": self.reason, "digest": self.digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTable:
    """The rows of one split, in order.

    Args:
        ids: Stable names.
        labels: int64 (N,), -1 for unlabelled.
        digests: uint8 (N, 32), the SHA-256 of the image behind each row.

    Raises:
        InvalidOption: These do not fit together.
    """

    ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    digests: Digests

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (labels.dtype.kind not in "iu" and labels.size):
            raise InvalidOption(f"labels: expected integers (N,), got {labels.dtype} {labels.shape}")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        object.__setattr__(self, "digests", as_digests(self.digests))
        if not len(self.ids) == len(self.labels) == len(self.digests):
            raise InvalidOption(
                f"a split: expected as many labels and digests as ids, "
                f"got {len(self.ids)} ids, {len(self.labels)} labels, {len(self.digests)} digests"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: slice | npt.NDArray[Any]) -> SplitTable:
        """Some of the rows: a slice, a mask or an index."""
        if isinstance(which, slice):
            return SplitTable(ids=self.ids[which], labels=self.labels[which], digests=self.digests[which])
        rows = np.flatnonzero(which) if which.dtype == np.bool_ else which
        ids = tuple(self.ids[row] for row in rows.tolist())
        return SplitTable(ids=ids, labels=self.labels[rows], digests=self.digests[rows])


def encoded_ids(split: str, ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Ids as fixed-length UTF-8: (N,) bytes. File names that are no UTF-8 keep their bytes (surrogateescape).

    Raises InvalidOption for an id that cannot be stored unchanged: empty, ending in NUL, lone surrogates.
    """
    # Twice, so that no more than the widest has to be known before they are kept.
    width = max((len(_encoded_id(split, one)) for one in ids), default=1)
    return np.fromiter((_encoded_id(split, one) for one in ids), f"|S{width}", len(ids))


def _encoded_id(split: str, one: str) -> bytes:
    try:
        data = one.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{split}: the id {one!r} is no text that UTF-8 can hold") from error
    if not data or data.endswith(b"\0") or data.decode("utf-8", "surrogateescape") != one:
        raise InvalidOption(f"{split}: expected an id that is neither empty nor ends in NUL, got {one!r}")
    return data
