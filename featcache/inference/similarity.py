"""Find the cached images whose features are most similar to those of an image, by cosine.

    found = search("data/features/photos-vgg16.h5", "new.jpg", count=5)

Cached rows are read once, in blocks, however many images are searched for: the features of these are kept in memory up
to `QUERY_BYTES`, and above in a temporary file. An image whose bytes are those of a cached one, or which is named by
its id, has its features in the cache already; then neither a backbone nor torch is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.cache.catalog import places_of
from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.cache.targets import Target
from featcache.columns import LABEL, SEPARATOR
from featcache.config import accepts, divide_options
from featcache.errors import CacheNotFound, ImageError, UnknownName
from featcache.extraction.execution import ComputeOptions
from featcache.images import ImageSource, Sample
from featcache.images.source import digest
from featcache.inference.classifier import ImageFeatures
from featcache.inference.options import SearchOptions, Weights
from featcache.inference.pictures import Images, open_pictures
from featcache.inference.records import Found, NearImage, SearchedImage
from featcache.rows.cuts import SplitRows
from featcache.rows.features import FeatureRows, choose_layers
from featcache.rows.joining import CacheLayers, join_rows, origin_of
from featcache.rows.origins import FeatureOrigin
from featcache.runs.run import Run

# Features that are searched for: more of them go to a temporary file.
QUERY_BYTES = 256 << 20
# Size of a piece of them, and of their similarities to a block of cached rows.
_PIECE_BYTES = 64 << 20

Rows = NDArray[np.int64]
Values = NDArray[np.float32]


class CachedImages:
    """The plain images of some splits of a cache, or of several caches joined, with features, ids and targets.

    Rows are numbered from 0, split after split.

    Args:
        columns: The caches and layers; the first cache determines the images.
        splits: Their splits.
        targets: The targets of the first cache that `labels` reads; names that it lacks are ignored.
    """

    def __init__(self, columns: Sequence[CacheLayers], splits: Sequence[str], targets: Sequence[str] = ()) -> None:
        self.cache, self.columns, self.splits = columns[0].cache, tuple(columns), tuple(splits)
        self.parts: tuple[FeatureRows, ...] = tuple(self._part(split) for split in splits)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.targets = tuple(name for name in targets if name in self.cache.targets)
        self._read_targets: dict[tuple[str, str], Target] = {}

    def _part(self, split: str) -> FeatureRows:
        rows = np.arange(len(self.cache[split]))
        # Nothing is learned, so there are no targets.
        chosen = SplitRows(source=split, rows=rows, targets=np.zeros(len(rows), np.int64))
        return join_rows(self.columns, chosen, None)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and D."""
        return len(self), self.parts[0].feature_dim

    def blocks(self) -> Iterator[Values]:
        """Read all rows once, in order: float32 (n, D)."""
        for part in self.parts:
            yield from part.blocks()

    def __getitem__(self, rows: Any) -> Values:
        """Some rows, of any order: float32 (n, D)."""
        rows = np.arange(len(self))[rows]
        values = np.empty((len(rows), self.shape[1]), np.float32)
        for part, inside, places in self._places(rows):
            order = np.argsort(inside, kind="stable")
            stored = part.empty(len(inside))
            part.read(inside[order], stored)
            block = np.empty((len(inside), self.shape[1]), np.float32)
            part.fill(block, stored)
            values[places[order]] = block
        return values

    def target_values(self, rows: Rows) -> dict[str, list[Any]]:
        """The targets of some rows, by name: a name, a tuple of names, a number or a text; None for no value."""
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in self.targets}
        for part, inside, places in self._places(rows):
            for name, values in found.items():
                decoded = self._target(part.split, name).at(inside).decode()
                for place, value in zip(places.tolist(), decoded, strict=True):
                    values[place] = value
        return found

    def _target(self, split: CachedSplit, name: str) -> Target:
        # Targets are read whole, so they are kept.
        key = split.name, name
        if key not in self._read_targets:
            self._read_targets[key] = split.target(name)
        return self._read_targets[key]

    def describe(self, rows: Rows) -> list[tuple[str, str, str | None]]:
        """The split, the id and the targets as text of some rows; None for the targets of an unlabelled image."""
        names: dict[int, tuple[str, str]] = {}
        for part, inside, places in self._places(rows):
            ids = part.split.ids_at(inside)
            names |= {place: (part.split.name, name) for place, name in zip(places.tolist(), ids, strict=True)}
        values = self.target_values(rows).values()
        return [(*names[place], text_of([column[place] for column in values])) for place in range(len(rows))]

    def _places(self, rows: Rows) -> Iterator[tuple[FeatureRows, Rows, Rows]]:
        """For each split its rows among `rows`: their numbers in the split, and their places in `rows`."""
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True):
            places = np.flatnonzero((rows >= start) & (rows < end))
            if len(places):
                yield part, rows[places] - start, places

    def find_id(self, name: str) -> int | None:
        """The row of the image with this id; None if there is none."""
        wanted = name.encode("utf-8", "surrogateescape")
        for part, start in zip(self.parts, self.starts, strict=False):
            found = np.flatnonzero(part.split.encoded_ids == wanted)
            if len(found):
                return int(start + found[0])
        return None

    def find_digests(self, digests: Sequence[bytes]) -> list[int | None]:
        """For each digest the row of the first image with these bytes; None if there is none."""
        known = np.concatenate([part.split.digests for part in self.parts])
        # Eight bytes decide; the others are compared only if these are equal.
        keys = np.ascontiguousarray(known[:, :8]).view(np.uint64).ravel()
        order = np.argsort(keys, kind="stable")
        found: list[int | None] = []
        for one in digests:
            key = np.frombuffer(one[:8], np.uint64)[0]
            first, end = (np.searchsorted(keys, key, side=side, sorter=order) for side in ("left", "right"))
            same = [int(row) for row in order[first:end] if known[row].tobytes() == one]
            found.append(same[0] if same else None)
        return found


def text_of(values: Iterable[Any]) -> str | None:
    """The targets of an image as text; None where it has none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return SEPARATOR.join(SEPARATOR.join(one) if isinstance(one, tuple) else str(one) for one in known)


class Queries:
    """Features that are searched for, scaled to length 1: in memory, or in a temporary file if there are many.

    Args:
        wide: D.
    """

    def __init__(self, wide: int) -> None:
        self._wide, self._count = wide, 0
        self._file = SpooledTemporaryFile(max_size=QUERY_BYTES)  # noqa: SIM115 - closed by `close`

    def __len__(self) -> int:
        return self._count

    def add(self, features: Values) -> None:
        """Add features, float32 (n, D)."""
        self._file.write(np.ascontiguousarray(_unit(features)).tobytes())
        self._count += len(features)

    def pieces(self, beside: int) -> Iterator[tuple[slice, Values]]:
        """All features in pieces, small enough to be compared with `beside` rows at a time."""
        step = max(1, _PIECE_BYTES // (4 * (self._wide + beside)))
        self._file.seek(0)
        for start in range(0, self._count, step):
            stop = min(start + step, self._count)
            content = self._file.read((stop - start) * self._wide * 4)
            yield slice(start, stop), np.frombuffer(content, np.float32).reshape(-1, self._wide)

    def close(self) -> None:
        """Remove the features."""
        self._file.close()


def nearest(queries: Queries, blocks: Iterable[Values], count: int) -> tuple[Values, Rows]:
    """The rows with the greatest cosine to each query; every block is read once.

    Args:
        queries: N features.
        blocks: The rows to search, float32 (n, D) each.
        count: How many rows to find, at most.

    Returns:
        Cosines float32 (N, k) and row numbers int64 (N, k), the greatest first, of equal ones the first row; k is
        `count`, or the number of rows if there are fewer.
    """
    near, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first = 0
    for block in blocks:
        known = _unit(block).T
        width = min(count, near.shape[1] + len(block))
        more, places = np.empty((len(queries), width), np.float32), np.empty((len(queries), width), np.int64)
        for part, piece in queries.pieces(len(block)):
            numbers = np.broadcast_to(np.arange(first, first + len(block)), (len(piece), len(block)))
            joined = np.hstack([near[part], piece @ known]), np.hstack([rows[part], numbers])
            more[part], places[part] = _largest(*joined, count)
        near, rows, first = more, places, first + len(block)
    order = np.lexsort((rows, -near), axis=1)
    return np.take_along_axis(near, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _largest(near: Values, rows: Rows, count: int) -> tuple[Values, Rows]:
    if near.shape[1] <= count:
        return near, rows
    kept = np.argpartition(-near, count - 1, axis=1)[:, :count]
    return np.take_along_axis(near, kept, axis=1), np.take_along_axis(rows, kept, axis=1)


def _unit(features: Values) -> Values:
    """The rows scaled to length 1; rows of zeros are unchanged."""
    unit: Values = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def near_images(known: CachedImages, similarities: Values, rows: Rows) -> list[tuple[NearImage, ...]]:
    """The records of the nearest rows of each query: cosines and row numbers (N, k)."""
    described = iter(known.describe(rows.ravel()))
    return [
        tuple(
            NearImage(id=name, split=split, label=label, similarity=value)
            for value, (split, name, label) in zip(values, described, strict=False)
        )
        for values in similarities.tolist()
    ]


# --- the caches of a run -----------------------------------------------------------------------------------


class RunImages(CachedImages):
    """The images of the caches that a head was trained on.

    Args:
        run: The run of the head.
        splits: Their splits; None: all.
        data_dir: Caches that were moved are searched here.

    Raises:
        CacheNotFound: A cache does not exist any more, or contains other features now.
    """

    def __init__(self, run: Run, splits: Sequence[str] | None, *, data_dir: Path) -> None:
        with ExitStack() as opened:
            origins = run.features.origins
            caches = [opened.enter_context(_open_cache(origin, data_dir)) for origin in origins]
            columns = [
                CacheLayers(cache=cache, layers=tuple(layer.name for layer in origin.layers))
                for cache, origin in zip(caches, origins, strict=True)
            ]
            super().__init__(columns, splits or caches[0].splits, run.target.columns)
            self._open = opened.pop_all()

    def close(self) -> None:
        """Close the caches."""
        self._open.close()


def _open_cache(origin: FeatureOrigin, data_dir: Path) -> FeatureCache:
    """Open the cache at its recorded path, or by its name in the data folder."""
    for path in places_of(Path(origin.cache), data_dir / "features"):
        cache = _same(path, origin)
        if cache is not None:
            return cache
    raise CacheNotFound(
        f"the cache the head was trained on does not exist any more: {origin.cache}",
        hint="leave out --neighbours, which needs its train images; or extract it again",
    )


def _same(path: Path, origin: FeatureOrigin) -> FeatureCache | None:
    try:
        cache = FeatureCache.open(path)
    except CacheNotFound:
        return None
    names = [layer.name for layer in origin.layers]
    if "train" in cache and set(names) <= set(cache.layers) and cache.spec.with_layers(names) == origin.layers_spec:
        return cache
    cache.close()
    return None


# --- search ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Query:
    """An image to search for: `row` is its row where it is cached, `named` whether it was named by its id."""

    name: str
    row: int | None = None
    named: bool = False
    sample: Sample | None = None
    source: ImageSource | None = None


@accepts(SearchOptions)
def search(
    cache: FeatureCache | str | Path,
    images: Images,
    *,
    weights: Weights = None,
    backbone: Network | None = None,
    data_dir: str | Path = "data",
    device: str = "auto",
    **options: Any,
) -> Found:
    """Find the cached images that are most similar to images, by the cosine of their features.

    Args:
        cache: An open cache, or its path.
        images: As for `predict`: a path, several paths, encoded bytes, arrays, ...; or ids of images of the cache. An
            image that is named by its id is not found itself.
        weights: Where the backbone's weights are now, if they were moved.
        backbone: The module, where the cache's backbone is a module of your own.
        data_dir: The folder of weights.
        device: Where features of new images are computed.
        {options}

    Returns:
        The most similar images of each image.

    Raises:
        UnknownName: The cache has no such split or layer.
        InvalidOption: The cache has several layers and none was named, or `images` is empty.
        SourceError, ImageError: An image cannot be read, and the cache has no image with such an id.
        WeightsError: The backbone's weights are missing, or differ from those that computed the cache.
        CacheError: The cache cannot be read.
    """
    own = ("cache", "images", "weights", "backbone", "data_dir", "device")
    what = SearchOptions(**divide_options(options, "search", SearchOptions, also=own)[0])
    with ExitStack() as opened:
        cache = cache if isinstance(cache, FeatureCache) else opened.enter_context(FeatureCache.open(cache))
        for split in what.splits or ():
            if split not in cache.splits:
                raise UnknownName("split", split, cache.splits)
        columns = [CacheLayers(cache=cache, layers=choose_layers(cache, what.layers))]
        every = CachedImages(columns, cache.splits)
        wanted = _queries(every, images, opened)
        queries = opened.enter_context(closing(Queries(every.shape[1])))
        compute = partial(
            ImageFeatures.of,
            origin_of(columns[0]),
            cache.name,
            weights=weights,
            backbone=backbone,
            data_dir=Path(data_dir),
            device=device,
        )
        for features in _features(wanted, every, compute):
            queries.add(features)
        splits = [split for split in cache.splits if not what.splits or split in what.splits]
        searched = CachedImages(columns, splits, (LABEL,) if LABEL in cache.targets else tuple(cache.targets))
        # One more, because an image that is named by its id is left out.
        near = near_images(searched, *nearest(queries, searched.blocks(), what.count + 1))
        return Found(
            cache=cache.name,
            layers=columns[0].layers,
            rows=len(searched),
            images=tuple(_record(query, some, what.count) for query, some in zip(wanted, near, strict=True)),
        )


def _record(query: _Query, near: Sequence[NearImage], count: int) -> SearchedImage:
    others = [one for one in near if not (query.named and one.id == query.name)]
    return SearchedImage(path=query.name, cached=query.row is not None, neighbours=tuple(others[:count]))


def _queries(every: CachedImages, images: Images, opened: ExitStack) -> list[_Query]:
    """The images in the order in which they are given; ids of the cache, paths, or other images."""
    given: Any = [images] if isinstance(images, str) else images
    if not isinstance(given, list | tuple):
        return _open_images(every, images, opened)
    rows = [_row_of(every, one) if isinstance(one, str) and not Path(one).exists() else None for one in given]
    found: list[_Query] = []
    for is_id, group in groupby(zip(given, rows, strict=True), key=lambda pair: pair[1] is not None):
        some = list(group)
        if is_id:
            found += [_Query(name=name, row=row, named=True) for name, row in some]
        else:
            found += _open_images(every, [one for one, _ in some], opened)
    return found or _open_images(every, given, opened)


def _row_of(every: CachedImages, name: str) -> int:
    row = every.find_id(name)
    if row is None:
        raise ImageError(
            f"{name}: there is no such file, and no image of {every.cache.name} has this id",
            hint=f"name the path of an image, or an id such as {every.describe(np.array([0]))[0][1]}",
        )
    return row


def _open_images(every: CachedImages, images: Images, opened: ExitStack) -> list[_Query]:
    """Images that are read; those whose bytes are cached get their row."""
    source, samples = open_pictures(images)
    opened.enter_context(closing(source))
    digests = [digest(source.read(sample)) for sample in samples]
    return [
        _Query(name=sample.id, row=row, sample=sample, source=source)
        for sample, row in zip(samples, every.find_digests(digests), strict=True)
    ]


def _features(wanted: Sequence[_Query], every: CachedImages, compute: Callable[[], ImageFeatures]) -> Iterator[Values]:
    """The features of the images, in order: from the cache where they are there, else computed."""
    computing: ImageFeatures | None = None
    for (source, cached), group in groupby(wanted, key=lambda one: (one.source, one.row is not None)):
        some = list(group)
        if source is None or cached:
            yield every[np.array([one.row for one in some])]
            continue
        computing = computing or compute()
        samples = [one.sample for one in some if one.sample is not None]
        for chunk in computing.chunks(source, samples, ComputeOptions()):
            if chunk.failures:
                raise chunk.failures[0].error
            yield chunk.features
