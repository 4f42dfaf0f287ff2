"""Little pictures of an album's images, many in one sheet, as good as the room on the page allows.

One picture a sheet would cost a header each; in a sheet of 500 a CIFAR image takes about 200 bytes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
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
from featcache.report.albums import Album, Rows, Site

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int], None]

PIXELS: Final = "pixels"
LARGEST_SIDE: Final = 48
COLUMNS: Final = 25
PER_SHEET: Final = 500
# WebP mixes colours within blocks of 16 pixels: smaller tiles would run into each other.
_LOSSLESS_UP_TO: Final = 16
_QUALITIES: Final = ((48, 80), (48, 60), (32, 85), (32, 75), (32, 60), (32, 45), (32, 30), (16, 100))
_SAMPLE: Final = 200
# Base64 writes three bytes as four.
_INFLATION: Final = 4 / 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnails:
    """`sheets`: images as data URLs, `COLUMNS` tiles of `side` x `side` pixels a row, `PER_SHEET` a sheet.

    `tiles` int64 (n,): the number of each image's tile, -1 where it has none. `notes`: which have none, and why.
    """

    sheets: tuple[str, ...]
    side: int
    tiles: Rows
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """What the sheets take on the page."""
        return sum(map(len, self.sheets))


def no_thumbnails(count: int, *notes: str) -> Thumbnails:
    """None of `count` images has a picture."""
    return Thumbnails(sheets=(), side=0, tiles=np.full(count, -1, np.int64), notes=notes)


def pictures_of(
    album: Album, datasets_dir: Path, progress: Progress | None = None
) -> tuple[list[Pixels | None], list[str]]:
    """The images of an album, at most 48 pixels a side, None where one cannot be had; and why not.

    Each is uint8 (H, W, 3). An image whose bytes are not those that were extracted is left out. Nothing is downloaded.
    """
    found: list[Pixels | None] = [None] * len(album.shown)
    reasons: list[str] = []
    # A cache of pixels is the images themselves; else the first cache's source is asked.
    for site in sorted((one for one in album.sites if one.cache is not None), key=_is_no_pixels):
        found, reasons = _of_site(site, album.ids, datasets_dir, progress)
        if any(image is not None for image in found):
            break
    return found, reasons


def _is_no_pixels(site: Site) -> bool:
    return site.subjects[0].run.features.backbone != PIXELS


def _of_site(
    site: Site, ids: Sequence[str], datasets_dir: Path, progress: Progress | None
) -> tuple[list[Pixels | None], list[str]]:
    if site.cache is None or not (site.rows >= 0).any():
        return [None] * len(ids), []
    with FeatureCache.open(site.cache) as cache:
        return pictures_at(cache, site.split, ids, site.rows, datasets_dir, progress)


def pictures_at(
    cache: FeatureCache,
    split: str,
    ids: Sequence[str],
    rows: Rows,
    datasets_dir: Path,
    progress: Progress | None = None,
) -> tuple[list[Pixels | None], list[str]]:
    """The images called `ids` at `rows` int64 (n,) of a split (-1: in none of them), as `pictures_of` gives them."""
    if cache.spec.backbone == PIXELS:
        return _stored_pixels(cache[split], rows), []
    try:
        source = open_images(cache.selection.source, datasets_dir=datasets_dir, download=False)
    except FeatcacheError as error:
        return [None] * len(ids), [f"The images cannot be read, so none is shown: {error.message}."]
    with closing(source):
        return _read(source, cache[split], list(zip(ids, rows.tolist(), strict=True)), progress)


def _stored_pixels(split: CachedSplit, rows: Rows) -> list[Pixels | None]:
    # A cache of pixels is the images themselves, channels first.
    stored = split.features
    places = np.flatnonzero(rows >= 0)
    pixels = stored.gather(rows[places]).reshape(-1, *stored.feature_shape).transpose(0, 2, 3, 1)
    found: list[Pixels | None] = [None] * len(rows)
    for place, image in zip(places.tolist(), pixels, strict=True):
        found[place] = _shrunk(np.ascontiguousarray(image))
    return found


def _read(
    source: ImageSource, split: CachedSplit, jobs: Sequence[tuple[str, int]], progress: Progress | None
) -> tuple[list[Pixels | None], list[str]]:
    samples = _samples(source, split.name)
    digests = split.digests
    reasons: list[str] = []

    def read(job: tuple[str, int]) -> Pixels | None:
        name, row = job
        if row < 0:
            return None
        if "://" in name:
            reasons.append(f"{name} lies on the network, which a report does not ask")
            return None
        if name not in samples:
            reasons.append(f"{name} is no longer there")
            return None
        try:
            payload = source.read(samples[name])
            if digest(payload) != digests[row].tobytes():
                reasons.append(f"{name} is another image now")
                return None
            return _shrunk(decode(payload, name))
        except ImageError as error:
            reasons.append(error.message)
            return None

    found: list[Pixels | None] = []
    # Pillow decodes without holding Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for image in threads.map(read, jobs):
            found.append(image)
            if progress is not None:
                progress("reading images", len(found), len(jobs))
    return found, [f"{len(reasons):,} images cannot be shown: {min(reasons)}."] if reasons else []


def _samples(source: ImageSource, split: str) -> dict[str, Sample]:
    if split not in source.splits():
        return {}
    return {sample.id: sample for sample in source.samples(split)}


def _shrunk(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    largest = max(height, width)
    if largest <= LARGEST_SIDE:
        return pixels
    size = (max(1, round(width * LARGEST_SIDE / largest)), max(1, round(height * LARGEST_SIDE / largest)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def packed(
    pictures: Sequence[Pixels | None], room: int, *, wanted: Rows | None = None, notes: Sequence[str] = ()
) -> Thumbnails:
    """Sheets of all pictures within `room` bytes: in the best quality that fits, and fewer where none does.

    `wanted` int64 (n,): all positions, those first that are kept where there is no room for all.
    """
    order = range(len(pictures)) if wanted is None else wanted.tolist()
    chosen = [(number, image) for number in order if (image := pictures[number]) is not None]
    if not chosen:
        return no_thumbnails(len(pictures), *notes)
    have, images = [number for number, _ in chosen], [image for _, image in chosen]
    natural = max(max(image.shape[:2]) for image in images)
    steps = [step for step in _QUALITIES if step[0] < natural + 16] or [_QUALITIES[-1]]
    said = list(notes)
    for side, quality in steps:
        if _estimate(images, min(side, natural), quality) > room:
            continue
        sheets = _sheets(images, min(side, natural), quality)
        if sum(map(len, sheets)) <= room:
            return _numbered(sheets, min(side, natural), have, len(pictures), said)
    return _fewer(images, have, len(pictures), room, (min(steps[-1][0], natural), steps[-1][1]), said)


def _fewer(
    images: Sequence[Pixels], have: Sequence[int], count: int, room: int, step: tuple[int, int], notes: list[str]
) -> Thumbnails:
    kept = int(len(images) * min(1.0, room / _estimate(images, *step)))
    while kept and sum(map(len, sheets := _sheets(images[:kept], *step))) > room:
        kept = int(kept * 0.9)
    said = [*notes, f"{kept:,} of {len(images):,} images have a picture: more would make the page too large."]
    return _numbered(sheets, step[0], have[:kept], count, said) if kept else no_thumbnails(count, *said)


def _numbered(sheets: Sequence[str], side: int, have: Sequence[int], count: int, notes: Sequence[str]) -> Thumbnails:
    tiles = np.full(count, -1, np.int64)
    tiles[list(have)] = np.arange(len(have))
    return Thumbnails(sheets=tuple(sheets), side=side, tiles=tiles, notes=tuple(notes))


def _estimate(images: Sequence[Pixels], side: int, quality: int) -> float:
    """About how many bytes all would take: from some, evenly chosen."""
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
        image = image.resize(_fitted(image.size, side), Image.Resampling.LANCZOS)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        sheet.paste(image, (column * side + left, row * side + top))
    return sheet


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _data_url(sheet: Image.Image, side: int, quality: int) -> str:
    content = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if side < _LOSSLESS_UP_TO else {"quality": quality}
    sheet.save(content, "WEBP", method=4, **options)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
