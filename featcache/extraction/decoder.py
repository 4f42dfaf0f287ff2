"""Images, read and decoded once for however many backbones walk through them side by side."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.images.decoding import decode
from featcache.images.sources import ImageSource, Sample, digest

Image = npt.NDArray[np.uint8]


class _Announced:
    """How often each image will still be asked for: 12 bytes an image, however many there are.

    Images are told apart by 8 bytes of their digests. Should two of ten million agree in these, one is kept longer.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int32)

    def add(self, digests: npt.NDArray[np.uint8]) -> None:
        """Once more for every different one of these, (n, 32)."""
        coming = np.unique(_keys(digests))
        keys = np.union1d(self._keys, coming)
        counts = np.zeros(len(keys), np.int32)
        counts[np.searchsorted(keys, self._keys)] = self._counts
        counts[np.searchsorted(keys, coming)] += 1
        self._keys, self._counts = keys, counts

    def taken(self, digest: bytes) -> bool:
        """Somebody has asked for it; whether somebody else still will."""
        (key,) = _keys(np.frombuffer(digest, np.uint8)[None])
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return False
        self._counts[place] = max(0, self._counts[place] - 1)
        return bool(self._counts[place])


def _keys(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


@dataclass(kw_only=True, eq=False)
class Decoder:
    """Reads and decodes images of `source`. One that was announced several times is kept until all have had it."""

    source: ImageSource
    _announced: _Announced = field(default_factory=_Announced, repr=False)
    _kept: dict[bytes, Future[Image]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def expect(self, digests: npt.NDArray[np.uint8]) -> None:
        """Somebody will ask once for each different image with these SHA-256, (n, 32)."""
        with self._lock:
            self._announced.add(digests)

    def image(self, sample: Sample, expected: bytes | None) -> Image:
        """(H, W, 3) uint8, not to be written to. `expected` is the SHA-256 its bytes must have, or None; thread-safe.

        Raises ImageError where it cannot be read or decoded, or is no longer the image that was planned.
        """
        if expected is None:
            return self._decoded(sample, None)
        with self._lock:
            wanted = self._announced.taken(expected)
            kept = self._kept.get(expected) if wanted else self._kept.pop(expected, None)
            if kept is None and wanted:
                coming = self._kept[expected] = Future()
        if kept is not None:
            return kept.result()
        return self._decoded_into(coming, sample, expected) if wanted else self._decoded(sample, expected)

    def _decoded_into(self, coming: Future[Image], sample: Sample, expected: bytes) -> Image:
        try:
            coming.set_result(self._decoded(sample, expected))
        except BaseException as error:
            # Whoever waits for it learns of it too.
            coming.set_exception(error)
        return coming.result()

    def _decoded(self, sample: Sample, expected: bytes | None) -> Image:
        payload = self.source.read(sample)
        # The very bytes that are decoded are hashed: an image edited meanwhile must not pass as the old one.
        if expected is not None and digest(payload) != expected:
            raise ImageError(
                f"{sample.id}: the image changed while it was being extracted",
                hint="run the command again; with --rehash if it happens twice",
            )
        return decode(payload, sample.id)
