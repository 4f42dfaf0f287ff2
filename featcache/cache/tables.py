"""The rows of a split as a table: ids, digests and targets; and the images that were skipped."""

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
        id, split: Its sample id and split.
        reason: Why it could not be used, in a sentence.
        digest: The SHA-256 of its bytes, hexadecimal; None where they could not be read.
    """

    id: str
    split: str
    reason: str
    digest: str | None = None

    def as_json(self) -> dict[str, Json]:
        """The mapping that is stored as JSON."""
        return {"id": self.id, "split": self.split, "reason": self.reason, "digest": self.digest}


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitTable:
    """The rows of one split, in order.

    Args:
        ids: N sample ids.
        digests: uint8 (N, 32), the SHA-256 of the image of each row.
        targets: The values of each target by its name, one for each row (`cache.targets`); the columns of the cache
            describe them. Segments have no targets.

    Raises:
        InvalidOption: The numbers of ids, digests and values differ.
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
        """Select rows.

        Args:
            which: A slice, a mask (N,) or row numbers.
        """
        if isinstance(which, slice):
            ids = self.ids[which]
        else:
            which = np.flatnonzero(which) if which.dtype == np.bool_ else which
            ids = tuple(self.ids[row] for row in which.tolist())
        targets = {name: values[which] for name, values in self.targets.items()}
        return SplitTable(ids=ids, digests=self.digests[which], targets=targets)


@runtime_checkable
class EncodedTexts(Protocol):
    """A sequence of texts that is stored as one buffer, and gives all of them as one array without a str for each."""

    def to_utf8(self) -> npt.NDArray[np.bytes_] | None:
        """All texts as UTF-8 of fixed length, (N,) bytes; None where some may not be valid UTF-8.

        Each text must then be encoded by itself.
        """


def encode_ids(split: str, ids: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Encode ids as fixed-length UTF-8: (N,) bytes. File names that are not UTF-8 keep their bytes (surrogateescape).

    Raises InvalidOption for an id that cannot be stored unchanged: empty, ending in NUL, lone surrogates.
    """
    known = ids.to_utf8() if isinstance(ids, EncodedTexts) else None
    encoded = encode_texts(split, ids) if known is None else known
    if (encoded == b"").any():
        raise InvalidOption(
            f"{split}: expected ids that are not empty, got an empty id in row {int(np.argmin(encoded != b''))}"
        )
    return encoded


def encode_texts(what: str, texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Encode texts, which may be empty, as fixed-length UTF-8: (N,) bytes. `what` names them in messages.

    Raises InvalidOption for one that cannot be stored unchanged: ending in NUL, lone surrogates.
    """
    # Encoded twice, so that only the greatest length has to be known before the array is made.
    width = max((len(_encode(what, one)) for one in texts), default=1)
    return np.fromiter((_encode(what, one) for one in texts), f"|S{max(1, width)}", len(texts))


def _encode(what: str, one: str) -> bytes:
    try:
        data = one.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{what}: {one!r} cannot be encoded as UTF-8") from error
    if data.endswith(b"\0") or data.decode("utf-8", "surrogateescape") != one:
        raise InvalidOption(f"{what}: {one!r} cannot be stored unchanged: it ends in NUL, or contains half a character")
    return data
