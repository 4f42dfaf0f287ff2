"""Decides whether two images are the same picture, even recompressed, recoloured or mirrored, by their outlines.

An image is reduced to 16x16 gray pixels. Two images are compared by the correlation of their gradients (differences of
neighbouring pixels, in both directions). Brightness, contrast and colour do not change it, and unlike a correlation of
the pixels it separates two different pictures of the sea under the sky. A border of two pixels is left out, because
frames look alike. The second image is also compared shifted by a pixel in each direction, and mirrored.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from featcache.analysis.table import ImageTable
from featcache.analysis.thinning import Rows
from featcache.analysis.values import Values
from featcache.errors import SourceError
from featcache.images.decoding import decode
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, digest
from featcache.progress import StageProgress

Small = npt.NDArray[np.uint8]

SIDE: Final = 16
BORDER: Final = 2
SHIFT: Final = 1
_CHUNK: Final = 64
_PAIRS: Final = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Some images of a table as small gray images.

    `place`: int64 (N,), the index of each image in `pixels`, -1 if it is absent. `pixels`: uint8 (n, 16, 16). An image
    is absent if it cannot be read, or if its bytes are not those whose features were cached.
    """

    place: Rows
    pixels: Small

    @classmethod
    def read(
        cls,
        source: ImageSource,
        table: ImageTable,
        numbers: Rows,
        *,
        workers: int = 2,
        progress: StageProgress | None = None,
    ) -> Pictures:
        """Read the images with these `numbers`, int64 (n,).

        `progress` is called with ("looking", images done, images in all).
        """
        place = np.full(len(table), -1, np.int64)
        kept: list[Small] = []
        chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
        with ThreadPoolExecutor(workers, thread_name_prefix="look") as pool:
            done = 0
            for chunk, seen in zip(chunks, pool.map(lambda some: _look(source, table, some), chunks), strict=True):
                for number, pixels in zip(chunk.tolist(), seen, strict=True):
                    if pixels is not None:
                        place[number] = len(kept)
                        kept.append(pixels)
                done += len(chunk)
                if progress is not None:
                    progress("looking", done, len(numbers))
        return cls(place=place, pixels=np.stack(kept) if kept else np.empty((0, SIDE, SIDE), np.uint8))

    def __len__(self) -> int:
        return len(self.pixels)

    def correlate(self, first: Rows, second: Rows) -> tuple[Values, Values]:
        """The correlation of each pair of images, unchanged and mirrored: float32 (P,), (P,), -1 to 1.

        NaN if an image of the pair is absent or has no outlines.
        """
        a, b = self.place[first], self.place[second]
        plain, mirrored = np.full((2, len(a)), np.nan, np.float32)
        there = np.flatnonzero((a >= 0) & (b >= 0))
        for start in range(0, len(there), _PAIRS):
            some = there[start : start + _PAIRS]
            one, other = (self.pixels[place].astype(np.float32) for place in (a[some], b[some]))
            plain[some] = gradient_correlation(one, other)
            mirrored[some] = gradient_correlation(one, other[:, :, ::-1])
        return plain, mirrored


def gradient_correlation(one: Values, other: Values) -> Values:
    """The highest correlation of each pair over all shifts by a pixel: float32 (P, 16, 16) twice -> float32 (P,)."""
    inner = SIDE - 2 * BORDER
    outlines = _outlines(one[:, BORDER : BORDER + inner, BORDER : BORDER + inner])
    best: Values = np.full(len(one), np.nan, np.float32)
    for down in range(BORDER - SHIFT, BORDER + SHIFT + 1):
        for right in range(BORDER - SHIFT, BORDER + SHIFT + 1):
            moved = _outlines(other[:, down : down + inner, right : right + inner])
            np.fmax(best, np.einsum("pd,pd->p", outlines, moved), out=best)
    return best


def _outlines(pixels: Values) -> Values:
    """Gradients scaled to length 1: (P, s, s) -> (P, 2 s (s - 1)); NaN for a uniform image."""
    count = len(pixels)
    gradients = np.concatenate(
        [np.diff(pixels, axis=2).reshape(count, -1), np.diff(pixels, axis=1).reshape(count, -1)], axis=1
    )
    length = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients / np.where(length > 0, length, np.nan)).astype(np.float32, copy=False)


def _look(source: ImageSource, table: ImageTable, numbers: Rows) -> list[Small | None]:
    return [_small(source, table.sample(number), table.digests[number].tobytes()) for number in numbers.tolist()]


def _small(source: ImageSource, sample: Sample, expected: bytes) -> Small | None:
    try:
        payload = source.read(sample)
        if digest(payload) != expected:
            return None
        gray = Image.fromarray(decode(payload, sample.id)).convert("L")
    except SourceError:
        # Removed or damaged since its features were cached: only its features can be compared.
        return None
    return np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX))
