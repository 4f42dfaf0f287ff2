"""The rows of a split as a table: ids, digests and targets, and the images that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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
        digests: uint8 (N, 32), the SHA-256 of the image behind each row.
        targets: The values of each target by its name, a row each (`cache.targets`); the cache's columns say what
            they mean. Segments hold none.

    Raises:
        InvalidOption: These do not fit together.
    """

    ids: Sequence[str]
    digests: Digests
    targets: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", as_digests(self.digests))
        object.__setattr__(self, "targets", {name: np.asarray(values) for name, values in self.targets.items()})
        counts = {"digests": len(self.digests)} | {name: (*one.shape, 0)[0] for name, one in self.targets.items()}
        if set(counts.values()) != {len(self.ids)}:
            got = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InvalidOption(f"a split: expected as many digests and values as ids, got {len(self.ids)} ids, {got}")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: slice | npt.NDArray[Any]) -> SplitTable:
        """Some of the rows: a slice, a mask or an index."""
        if isinstance(which, slice):
            ids = self.ids[which]
        else:
            which = np.flatnonzero(which) if which.dtype == np.bool_ else which
            ids = tuple(self.ids[row] for row in which.tolist())
        targets = {name: values[which] for name, values in self.targets.items()}
        return SplitTable(ids=ids, digests=self.digests[which], targets=targets)


@runtime_checkable
class EncodedTexts(Protocol):
    """Texts that can be had as UTF-8 of fixed length at once."""

    def encoded(self) -> npt.NDArray[np.bytes_] | None:
        """(N,); None where a text is none that UTF-8 can hold."""


def encoded_ids(split: str, ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Ids as fixed-length UTF-8: (N,) bytes. File names that are no UTF-8 keep their bytes (surrogateescape).

    Raises InvalidOption for an id that cannot be stored unchanged: empty, ending in NUL, lone surrogates.
    """
    known = ids.encoded() if isinstance(ids, EncodedTexts) else None
    encoded = encoded_texts(split, ids) if known is None else known
    if (encoded == b"").any():
        raise InvalidOption(
            f"{split}: expected ids that are not empty, got one at row {int(np.argmin(encoded != b''))}"
        )
    return encoded


def encoded_texts(what: str, texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Texts as fixed-length UTF-8, which may be empty: (N,) bytes. `what` names them in messages.

    Raises InvalidOption for one that cannot be stored unchanged: ending in NUL, lone surrogates.
    """
    # Twice, so that no more than the widest has to be known before they are kept.
    width = max((len(_encoded(what, one)) for one in texts), default=1)
    return np.fromiter((_encoded(what, one) for one in texts), f"|S{max(1, width)}", len(texts))


def _encoded(what: str, one: str) -> bytes:
    try:
        data = one.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{what}: {one!r} is no text that UTF-8 can hold") from error
    if data.endswith(b"\0") or data.decode("utf-8", "surrogateescape") != one:
        raise InvalidOption(f"{what}: {one!r} cannot be stored as it is: it ends in NUL, or holds half a character")
    return data
