"""Images, read and decoded once for however many backbones walk through them side by side."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featcache.errors import ImageError
from featcache.images.decoding import decode
from featcache.images.sources import ImageSource, Sample, digest

Image = npt.NDArray[np.uint8]


@dataclass(kw_only=True, eq=False)
class Decoder:
    """Reads and decodes images of `source`. One that was announced several times is kept until all have had it."""

    source: ImageSource
    _expected: Counter[bytes] = field(default_factory=Counter, repr=False)
    _kept: dict[bytes, Future[Image]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def expect(self, digests: npt.NDArray[np.uint8]) -> None:
        """Somebody will ask once for each of the images with these SHA-256, (n, 32)."""
        with self._lock:
            self._expected.update(one.tobytes() for one in digests)

    def image(self, sample: Sample, expected: bytes) -> Image:
        """(H, W, 3) uint8, not to be written to. `expected` is the SHA-256 its bytes must have; thread-safe.

        Raises ImageError where it cannot be read or decoded, or is no longer the image that was planned.
        """
        with self._lock:
            self._expected[expected] -= 1
            wanted = self._expected[expected] > 0
            if not wanted:
                del self._expected[expected]
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

    def _decoded(self, sample: Sample, expected: bytes) -> Image:
        payload = self.source.read(sample)
        # The very bytes that are decoded are hashed: an image edited meanwhile must not pass as the old one.
        if digest(payload) != expected:
            raise ImageError(
                f"{sample.id}: the image changed while it was being extracted",
                hint="run the command again; with --rehash if it happens twice",
            )
        return decode(payload, sample.id)
