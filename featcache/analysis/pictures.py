"""Compares the pixels of images: whether they are equal, and how much their outlines agree.

For each image two digests are kept, of its pixels and of its mirrored pixels, and 16 x 16 gray pixels. Transparency
counts as pixels: two icons that differ only in their transparency are different, although a backbone sees the same
colours. The outlines of two images are compared by the correlation of their gradients (differences of neighbouring
pixels, in both directions) after the mean of each row and column is removed: without that, any two ships between sea
and sky would agree. Brightness, contrast and colour do not change the correlation. A border of two pixels is left out,
because frames look alike. The second image is also compared shifted by a pixel in each direction, and mirrored.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from featcache.analysis.table import ImageTable
from featcache.analysis.values import Rows, Values
from featcache.errors import SourceError
from featcache.images.decoding import decode
from featcache.images.formats import format_of
from featcache.images.samples import Sample
from featcache.images.source import ImageSource, Payload, digest
from featcache.progress import StageProgress

Bytes = npt.NDArray[np.uint8]

SIDE: Final = 16
BORDER: Final = 2
SHIFT: Final = 1
# The least standard deviation of 16 x 16 pixels (0 to 255) without the means of rows and columns: below, the outlines
# are the rounding of pixels and the noise of compression.
LEAST_CONTRAST: Final = 3.0
_CHUNK: Final = 64
_PAIRS: Final = 4096
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What is kept of one image: digests of its pixels, gray pixels uint8 (16, 16), and whether it can be compared."""

    digest: bytes
    mirrored: bytes
    pixels: Bytes
    tiny: bool

    @classmethod
    def of(cls, payload: Payload, name: str) -> Picture:
        """Decode an image. Raises ImageError."""
        colours, alpha = decode(payload, name), _alpha(payload)
        planes = colours if alpha is None else np.dstack([colours, alpha])
        gray = Image.fromarray(colours).convert("L")
        if alpha is not None:
            gray = _over_background(np.asarray(gray), alpha)
        return cls(
            digest=_digest(planes),
            mirrored=_digest(planes[:, ::-1]),
            pixels=np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)),
            tiny=min(gray.size) < SIDE,
        )


def _digest(planes: Bytes) -> bytes:
    found = hashlib.blake2b(repr(planes.shape).encode(), digest_size=_DIGEST_BYTES)
    found.update(planes.tobytes())
    return found.digest()


def _alpha(payload: Payload) -> Bytes | None:
    """The transparency uint8 (H, W); None for an opaque image. `decode` drops it."""
    if isinstance(payload, np.ndarray):
        alpha = payload[:, :, 3] if payload.ndim == 3 and payload.shape[2] == 4 else None
    elif format_of(payload) in ("JPEG", "BMP", "PPM", "HEIC"):
        return None
    else:
        with Image.open(io.BytesIO(payload)) as image:
            if not image.has_transparency_data:
                return None
            upright = image if format_of(payload) == "TIFF" else ImageOps.exif_transpose(image)
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
    return None if alpha is None or alpha.min() == 255 else alpha


def _over_background(gray: Bytes, alpha: Bytes) -> Image.Image:
    """A drawing over black or white, whichever its opaque pixels differ from more."""
    share = alpha / np.float32(255)
    bright = float((gray * share).sum()) >= 127.5 * float(share.sum())
    over = gray * share + (0 if bright else 255) * (1 - share)
    return Image.fromarray(np.rint(over).astype(np.uint8))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Some images of a table, as `Picture` keeps them.

    `place`: int64 (N,), the index of each image in the other arrays, -1 if it is absent. `pixels`: uint8 (n, 16, 16).
    `digests` and `mirrored`: uint8 (n, 16). `tiny`, `flat`: bool (n,), whether outlines cannot be compared because the
    image is smaller than 16 x 16, or has too little contrast. `unread`: the number of images that cannot be read, or
    whose bytes are not those whose features were cached.
    """

    place: Rows
    pixels: Bytes
    digests: Bytes
    mirrored: Bytes
    tiny: npt.NDArray[np.bool_]
    unread: int

    @classmethod
    def read(
        cls,
        source: ImageSource,
        table: ImageTable,
        numbers: Rows,
        *,
        copies: Mapping[int, Sequence[int]] | None = None,
        workers: int = 2,
        progress: StageProgress | None = None,
    ) -> Pictures:
        """Read the images with these `numbers`, int64 (n,).

        `copies`: for an image the others with the same bytes; one of them is read where the image itself cannot be read
        or has changed.
        `progress` is called with ("looking", images done, images in all).
        """
        copies = copies or {}
        place = np.full(len(table), -1, np.int64)
        kept: list[Picture] = []
        chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
        look = partial(_look, source, table, copies)
        with ThreadPoolExecutor(workers, thread_name_prefix="look") as pool:
            done = 0
            for chunk, seen in zip(chunks, pool.map(look, chunks), strict=True):
                for number, picture in zip(chunk.tolist(), seen, strict=True):
                    if picture is not None:
                        place[number] = len(kept)
                        kept.append(picture)
                done += len(chunk)
                if progress is not None:
                    progress("looking", done, len(numbers))
        return cls(
            place=place,
            pixels=np.array([one.pixels for one in kept], np.uint8).reshape(-1, SIDE, SIDE),
            digests=_as_array([one.digest for one in kept]),
            mirrored=_as_array([one.mirrored for one in kept]),
            tiny=np.array([one.tiny for one in kept], np.bool_),
            unread=len(numbers) - len(kept),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def with_equal_bytes(self, by_bytes: Rows) -> Pictures:
        """The same pictures, also for images whose bytes are those of image `by_bytes`, int64 (N,)."""
        return replace(self, place=self.place[by_bytes])

    @property
    def flat(self) -> npt.NDArray[np.bool_]:
        """Which pictures have too little contrast for outlines: bool (n,)."""
        return np.asarray(_centre(self.pixels.astype(np.float32)).std(axis=(1, 2)) < LEAST_CONTRAST)

    @property
    def either(self) -> Bytes:
        """A digest that an image and its mirror image share: uint8 (n, 16)."""
        one, other = self.digests.view(f"S{_DIGEST_BYTES}"), self.mirrored.view(f"S{_DIGEST_BYTES}")
        return np.where(one < other, self.digests, self.mirrored)

    def correlate(self, first: Rows, second: Rows) -> tuple[Values, Values]:
        """The correlation of each pair of images, unchanged and mirrored: float32 (P,), (P,), -1 to 1.

        NaN if an image of the pair is absent or its outlines cannot be compared.
        """
        place = np.where((self.place >= 0) & ~np.append(self.tiny | self.flat, True)[self.place], self.place, -1)
        a, b = place[first], place[second]
        plain, mirrored = np.full((2, len(a)), np.nan, np.float32)
        there = np.flatnonzero((a >= 0) & (b >= 0))
        for start in range(0, len(there), _PAIRS):
            some = there[start : start + _PAIRS]
            one, other = (self.pixels[place].astype(np.float32) for place in (a[some], b[some]))
            plain[some], mirrored[some] = gradient_correlations(one, other)
        return plain, mirrored


def gradient_correlations(one: Values, other: Values) -> tuple[Values, Values]:
    """The highest correlation of each pair over all shifts by a pixel, unchanged and mirrored.

    Args:
        one: float32 (P, 16, 16).
        other: float32 (P, 16, 16). The first image is mirrored instead of this one, which gives the same correlations.

    Returns:
        float32 (P,), (P,).
    """
    inner = slice(BORDER, SIDE - BORDER)
    centre = one[:, inner, inner]
    both = np.stack([_outlines(centre), _outlines(centre[:, :, ::-1])])
    best: Values = np.full((2, len(one)), np.nan, np.float32)
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            moved = other[:, BORDER + down : SIDE - BORDER + down, BORDER + right : SIDE - BORDER + right]
            np.fmax(best, np.einsum("kpd,pd->kp", both, _outlines(moved)), out=best)
    return best[0], best[1]


def _centre(pixels: Values) -> Values:
    """Pixels (P, s, s) without the means of their rows and columns."""
    rows, columns = pixels.mean(axis=2, keepdims=True), pixels.mean(axis=1, keepdims=True)
    return np.asarray(pixels - rows - columns + pixels.mean(axis=(1, 2), keepdims=True), np.float32)


def _outlines(pixels: Values) -> Values:
    """Gradients scaled to length 1: (P, s, s) -> (P, 2 s (s - 1)); NaN where there are none."""
    count, across, down = len(pixels), np.diff(pixels, axis=2), np.diff(pixels, axis=1)
    # The same as differences of the pixels without the means of their rows and columns.
    across -= across.mean(axis=1, keepdims=True)
    down -= down.mean(axis=2, keepdims=True)
    gradients = np.concatenate([across.reshape(count, -1), down.reshape(count, -1)], axis=1)
    length = np.linalg.norm(gradients, axis=1, keepdims=True)
    # Below this the remainder is rounding.
    return (gradients / np.where(length > 1e-2, length, np.nan)).astype(np.float32, copy=False)


def _as_array(digests: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)


def _look(
    source: ImageSource, table: ImageTable, copies: Mapping[int, Sequence[int]], numbers: Rows
) -> list[Picture | None]:
    found = []
    for number in numbers.tolist():
        same = (number, *copies.get(number, ()))
        tried = (_read(source, table.sample(one), table.digests[one].tobytes()) for one in same)
        found.append(next((one for one in tried if one is not None), None))
    return found


def _read(source: ImageSource, sample: Sample, expected: bytes) -> Picture | None:
    try:
        payload = source.read(sample)
        return Picture.of(payload, sample.id) if digest(payload) == expected else None
    except SourceError:
        # Removed or damaged since its features were cached: only its features can be compared.
        return None
