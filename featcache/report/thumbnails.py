"""Thumbnails of the images of an image set, many in one sheet, in the best quality that fits on the page.

Separate image files would need a header each; in a sheet of 500 a CIFAR image takes about 200 bytes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.errors import FeatcacheError, ImageError
from featcache.images import ImageSource, Sample, decode, digest, open_images
from featcache.progress import StageProgress
from featcache.report.image_sets import CachedImages, ImageSet, Rows

Pixels = npt.NDArray[np.uint8]

PIXELS: Final = "pixels"
LARGEST_SIDE: Final = 48
COLUMNS: Final = 25
PER_SHEET: Final = 500
# WebP mixes colours within blocks of 16 pixels: the colours of smaller tiles would bleed into each other.
_LOSSLESS_UP_TO: Final = 16
_QUALITIES: Final = ((48, 80), (48, 60), (32, 85), (32, 75), (32, 60), (32, 45), (32, 30), (16, 100))
_SAMPLE: Final = 200
# Base64 writes three bytes as four.
_INFLATION: Final = 4 / 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnails:
    """Thumbnails as tiles of larger images.

    `sheets`: data URLs, each with up to `PER_SHEET` tiles of `side` x `side` pixels, `COLUMNS` per row. `tiles`: int64
    (n,), the tile of each image, -1 for an image without a thumbnail. `notes`: why images have none.
    """

    sheets: tuple[str, ...]
    side: int
    tiles: Rows
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """The size of the sheets on the page, in bytes."""
        return sum(map(len, self.sheets))


def no_thumbnails(count: int, *notes: str) -> Thumbnails:
    """Thumbnails of `count` images without any picture. `notes`: sentences that the page shows to say why."""
    return Thumbnails(sheets=(), side=0, tiles=np.full(count, -1, np.int64), notes=notes)


def pictures_of(
    image_set: ImageSet, datasets_dir: Path, progress: StageProgress | None = None
) -> tuple[list[Pixels | None], list[str]]:
    """The images of an image set, None for an image that is not available, and the reasons.

    Each is uint8 (H, W, 3), at most 48 pixels a side. An image whose bytes have changed since the extraction is left
    out. Nothing is downloaded.
    """
    pictures: list[Pixels | None] = [None] * len(image_set.shown)
    reasons: list[str] = []
    # A cache of pixels contains the images themselves and comes first; otherwise they are read from their source.
    for cached in sorted((one for one in image_set.caches if one.cache is not None), key=_is_no_pixels):
        pictures, reasons = _read_images(cached, image_set.ids, datasets_dir, progress)
        if any(image is not None for image in pictures):
            break
    return pictures, reasons


def _is_no_pixels(cached: CachedImages) -> bool:
    return cached.results[0].run.features.backbone != PIXELS


def _read_images(
    cached: CachedImages, ids: Sequence[str], datasets_dir: Path, progress: StageProgress | None
) -> tuple[list[Pixels | None], list[str]]:
    if cached.cache is None or not (cached.rows >= 0).any():
        return [None] * len(ids), []
    with FeatureCache.open(cached.cache) as cache:
        return pictures_at(cache, cached.split, ids, cached.rows, datasets_dir, progress)


def pictures_at(
    cache: FeatureCache,
    split: str,
    ids: Sequence[str],
    rows: Rows,
    datasets_dir: Path,
    progress: StageProgress | None = None,
) -> tuple[list[Pixels | None], list[str]]:
    """The images `ids` at `rows`, int64 (n,), of a split (row -1: absent), in the form that `pictures_of` returns."""
    if cache.spec.backbone == PIXELS:
        return _pixels_of_cache(cache[split], rows), []
    try:
        source = open_images(cache.selection.source, datasets_dir=datasets_dir, download=False)
    except FeatcacheError as error:
        return [None] * len(ids), [f"The images cannot be read, so there are no pictures: {error.message}."]
    with closing(source):
        return _read(source, cache[split], list(zip(ids, rows.tolist(), strict=True)), progress)


def _pixels_of_cache(split: CachedSplit, rows: Rows) -> list[Pixels | None]:
    # A cache of pixels contains the images themselves, channels first.
    stored = split.features
    places = np.flatnonzero(rows >= 0)
    pixels = stored.gather(rows[places]).reshape(-1, *stored.feature_shape).transpose(0, 2, 3, 1)
    pictures: list[Pixels | None] = [None] * len(rows)
    for place, image in zip(places.tolist(), pixels, strict=True):
        pictures[place] = _shrink(np.ascontiguousarray(image))
    return pictures


def _read(
    source: ImageSource, split: CachedSplit, jobs: Sequence[tuple[str, int]], progress: StageProgress | None
) -> tuple[list[Pixels | None], list[str]]:
    samples = _samples(source, split.name)
    digests = split.digests
    reasons: list[str] = []

    def read(job: tuple[str, int]) -> Pixels | None:
        name, row = job
        if row < 0:
            return None
        if "://" in name:
            reasons.append(f"{name} is on the network, and a report makes no network requests")
            return None
        if name not in samples:
            reasons.append(f"{name} is missing")
            return None
        try:
            payload = source.read(samples[name])
            if digest(payload) != digests[row].tobytes():
                reasons.append(f"{name} has changed")
                return None
            return _shrink(decode(payload, name))
        except ImageError as error:
            reasons.append(error.message)
            return None

    pictures: list[Pixels | None] = []
    # Pillow releases Python's global lock while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for image in threads.map(read, jobs):
            pictures.append(image)
            if progress is not None:
                progress("reading images", len(pictures), len(jobs))
    return pictures, [f"{len(reasons):,} images have no picture: {min(reasons)}."] if reasons else []


def _samples(source: ImageSource, split: str) -> dict[str, Sample]:
    if split not in source.splits():
        return {}
    return {sample.id: sample for sample in source.samples(split)}


def _shrink(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    largest = max(height, width)
    if largest <= LARGEST_SIDE:
        return pixels
    size = (max(1, round(width * LARGEST_SIDE / largest)), max(1, round(height * LARGEST_SIDE / largest)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def pack_sheets(
    pictures: Sequence[Pixels | None], max_bytes: int, *, wanted: Rows | None = None, notes: Sequence[str] = ()
) -> Thumbnails:
    """Pack pictures into sheets of at most `max_bytes` in all: in the best quality that fits, or else fewer pictures.

    `wanted`: int64 (n,), all positions by priority: the first are kept if not all fit.
    """
    order = range(len(pictures)) if wanted is None else wanted.tolist()
    chosen = [(number, image) for number in order if (image := pictures[number]) is not None]
    if not chosen:
        return no_thumbnails(len(pictures), *notes)
    have, images = [number for number, _ in chosen], [image for _, image in chosen]
    natural = max(max(image.shape[:2]) for image in images)
    steps = [step for step in _QUALITIES if step[0] < natural + 16] or [_QUALITIES[-1]]
    for side, quality in steps:
        if _estimate(images, min(side, natural), quality) > max_bytes:
            continue
        sheets = _sheets(images, min(side, natural), quality)
        if sum(map(len, sheets)) <= max_bytes:
            return _thumbnails(sheets, min(side, natural), have, len(pictures), notes)
    return _fewer(images, have, len(pictures), max_bytes, (min(steps[-1][0], natural), steps[-1][1]), notes)


def _fewer(
    images: Sequence[Pixels],
    have: Sequence[int],
    count: int,
    max_bytes: int,
    step: tuple[int, int],
    notes: Sequence[str],
) -> Thumbnails:
    kept = int(len(images) * min(1.0, max_bytes / _estimate(images, *step)))
    while kept and sum(map(len, sheets := _sheets(images[:kept], *step))) > max_bytes:
        kept = int(kept * 0.9)
    notes = [*notes, f"{kept:,} of {len(images):,} images have a picture: more would make the page too large."]
    return _thumbnails(sheets, step[0], have[:kept], count, notes) if kept else no_thumbnails(count, *notes)


def _thumbnails(sheets: Sequence[str], side: int, have: Sequence[int], count: int, notes: Sequence[str]) -> Thumbnails:
    tiles = np.full(count, -1, np.int64)
    tiles[list(have)] = np.arange(len(have))
    return Thumbnails(sheets=tuple(sheets), side=side, tiles=tiles, notes=tuple(notes))


def _estimate(images: Sequence[Pixels], side: int, quality: int) -> float:
    """The approximate size of the sheets of all images in bytes, from an even sample."""
    some = images[:: max(1, len(images) // _SAMPLE)]
    return sum(map(len, _sheets(some, side, quality))) * len(images) / len(some)


def _sheets(images: Sequence[Pixels], side: int, quality: int) -> list[str]:
    return [
        _data_url(_sheet(images[start : start + PER_SHEET], side), side, quality)
        for start in range(0, len(images), PER_SHEET)
    ]


def _sheet(images: Sequence[Pixels], side: int) -> Image.Image:
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * side, rows * side))
    for number, pixels in enumerate(images):
        row, column = divmod(number, COLUMNS)
        image = Image.fromarray(pixels)
        image = image.resize(_size_within(image.size, side), Image.Resampling.LANCZOS)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        sheet.paste(image, (column * side + left, row * side + top))
    return sheet


def _size_within(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _data_url(sheet: Image.Image, side: int, quality: int) -> str:
    content = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if side < _LOSSLESS_UP_TO else {"quality": quality}
    sheet.save(content, "WEBP", method=4, **options)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
