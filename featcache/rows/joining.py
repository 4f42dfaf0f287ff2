"""Join several caches of the same images: the features of two backbones for an image become one row.

    columns = (CacheLayers(cache=vgg, layers=("avgpool",)), CacheLayers(cache=inception, layers=("avgpool",)))
    rows = join_rows(columns, cut.train, cut.target)

The first cache determines the rows. A row of another cache is joined to it if it shows the same image: the same sample
id in the same split, the same digest of the image's bytes, the same target. Nothing is matched by position.
View k of one cache is joined to view k of the others, so all of them must have the same views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.columns import LABEL
from featcache.errors import HeadError, UnknownName
from featcache.rows.cuts import SplitRows, few_names
from featcache.rows.features import Column, FeatureRows, choose_layers
from featcache.rows.options import ALL_LAYERS
from featcache.rows.origins import FeatureLayer, FeatureOrigin
from featcache.rows.stratifying import Rows
from featcache.rows.target import HeadTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheLayers:
    """A cache, and the layers to read from it."""

    cache: FeatureCache
    layers: tuple[str, ...]


def choose_columns(caches: Sequence[FeatureCache], requested: tuple[str, ...] | None) -> tuple[CacheLayers, ...]:
    """The layers to read from each cache: the requested ones that it has, else its only layer.

    A layer is requested by its name, which means that layer of every cache that has it, or as `backbone/layer`.
    Raises UnknownName for a layer that no cache has, InvalidOption where a cache has several and none was named.
    """
    known = {name: None for cache in caches for layer in cache.layers for name in _names(cache, layer)}
    for name in requested or ():
        if name not in known and requested != ALL_LAYERS:
            raise UnknownName("layer", name, known)
    return tuple(
        CacheLayers(cache=cache, layers=choose_layers(cache, _layers_of(cache, requested))) for cache in caches
    )


def origin_of(column: CacheLayers) -> FeatureOrigin:
    """The layers of a cache as the origin of a head's features, as a run records it."""
    cache = column.cache
    weights, probe = cache.provenance.get("weights"), cache.provenance.get("probe")
    return FeatureOrigin(
        cache=str(cache.path),
        cache_name=cache.name,
        backbone=cache.spec.backbone,
        fingerprint=cache.spec.fingerprint,
        spec=cache.spec.to_json(),
        layers=tuple(
            FeatureLayer(
                name=array.name,
                dim=int(array.shape[1]),
                dtype=str(array.dtype),
                scale=float(array.scale),
                offset=float(array.offset),
            )
            for array in map(cache[cache.splits[0]].layer, column.layers)
        ),
        weights=weights if isinstance(weights, str) else None,
        images=cache.selection.source,
        probe=probe if isinstance(probe, Mapping) else None,
    )


def join_rows(
    columns: Sequence[CacheLayers], chosen: SplitRows, target: HeadTarget | None, views: int = 1
) -> FeatureRows:
    """The rows `chosen` of the first cache, with the layers of all caches concatenated.

    Args:
        columns: The caches and their layers.
        chosen: Rows of the first cache; their targets are used.
        target: The target to learn, which must be equal in every cache that has it; None where nothing is learned.
        views: Number of views of each image.

    Raises:
        HeadError: Another cache lacks images, or has them with another content or target; the error names them.
    """
    first = columns[0].cache
    return FeatureRows(
        chosen=chosen,
        columns=tuple(
            Column(array=split.layer(layer), rows=rows)
            for column in columns
            for split, rows in [_match_rows(first, column.cache, chosen, target)]
            for layer in column.layers
        ),
        split=first[chosen.source],
        views=views,
    )


def require_same_images(caches: Sequence[FeatureCache], target: HeadTarget) -> None:
    """Raise HeadError unless the caches agree in their views and in the kind and classes of the target."""
    first = caches[0]
    for other in caches[1:]:
        for name in target.columns:
            if name in other.targets:
                _require_same(first, other, f"kind of {name}", first.targets[name].kind, other.targets[name].kind)
                what = "classes" if name == LABEL else f"classes of {name}"
                _require_same(first, other, what, first.targets[name].names, other.targets[name].names)
        for what, this, that in (
            ("views per image", first.spec.views, other.spec.views),
            ("seed of the views", first.spec.view_seed, other.spec.view_seed),
        ):
            _require_same(first, other, what, this, that)


def _require_same(first: FeatureCache, other: FeatureCache, what: str, this: object, that: object) -> None:
    if this != that:
        raise HeadError(
            f"{first.name} and {other.name} differ in {what}: {_short(this)} and {_short(that)}",
            hint="caches that are joined must be extracted from the same images, with the same --views",
        )


def _names(cache: FeatureCache, layer: str) -> tuple[str, str]:
    return layer, f"{cache.spec.backbone}/{layer}"


def _layers_of(cache: FeatureCache, requested: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if requested == ALL_LAYERS:
        return requested
    there = {name: layer for layer in cache.layers for name in _names(cache, layer)}
    return tuple(dict.fromkeys(there[name] for name in requested or () if name in there)) or None


def _match_rows(
    first: FeatureCache, other: FeatureCache, chosen: SplitRows, target: HeadTarget | None
) -> tuple[CachedSplit, Rows]:
    """The split of `other` that shows the same images, and its rows in the order of `chosen`."""
    if other is first:
        return first[chosen.source], chosen.rows
    if chosen.source not in other:
        raise _different(first, other, f"{other.name} has no {chosen.source} split")
    here, there = first[chosen.source], other[chosen.source]
    rows = _positions(first, other, here, there, chosen.rows)
    _require_equal(first, other, here, chosen.rows, rows, "image bytes", here.digests, there.digests)
    for name in () if target is None else target.columns:
        if name in other.targets:
            what = "labels" if name == LABEL else name
            values = here.target(name).values, there.target(name).values
            _require_equal(first, other, here, chosen.rows, rows, what, *values)
    return there, rows


def _positions(first: FeatureCache, other: FeatureCache, here: CachedSplit, there: CachedSplit, rows: Rows) -> Rows:
    """The rows of `there` with the same sample ids as some rows of `here`: int64 (n,)."""
    place = {sample: number for number, sample in enumerate(there.ids)}
    wanted = here.ids_at(rows)
    missing = [sample for sample in wanted if sample not in place]
    if missing:
        raise _different(
            first, other, f"{len(missing)} {here.name} images are missing in {other.name}: {few_names(missing)}"
        )
    return np.array([place[sample] for sample in wanted], np.int64)


def _require_equal(
    first: FeatureCache,
    other: FeatureCache,
    split: CachedSplit,
    rows: Rows,
    other_rows: Rows,
    what: str,
    here: NDArray[np.generic],
    there: NDArray[np.generic],
) -> None:
    same = here[rows] == there[other_rows]
    wrong = np.flatnonzero(~(same if same.ndim == 1 else same.all(axis=1)))
    if len(wrong):
        names = split.ids_at(rows[wrong])
        raise _different(
            first, other, f"{len(names)} {split.name} images have other {what} in {other.name}: {few_names(names)}"
        )


def _different(first: FeatureCache, other: FeatureCache, what: str) -> HeadError:
    return HeadError(
        f"{first.name} and {other.name} are not of the same images: {what}",
        hint="extract both from the same images: the same --dataset, --limit and --select-seed",
    )


def _short(value: object) -> str:
    return few_names(value) if isinstance(value, tuple) else str(value)
