"""Before a head is trained: which caches, layers and rows, and where. Nothing is read yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from featcache.cache.reader import FeatureCache
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import Cut, SplitRows, cut_cache
from featcache.rows.features import FeatureRows
from featcache.rows.joining import CacheLayers, choose_columns, joined_rows, require_same_images
from featcache.rows.notes import Report, tell
from featcache.rows.origins import FeatureLayer, FeatureOrigin
from featcache.rows.target import HeadTarget, head_target
from featcache.rows.views import views_notes

if TYPE_CHECKING:
    import torch

    from featcache.rows.batches import Batches


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """The rows that one or many heads learn from, choose on and are tested on, and where that happens.

    `columns`: the caches and layers that are read; the first cache is `cache`, which says what the rows are.
    `rows`: of "train", in all views, of "val" and, where there are labelled test images, "test". `place`: the device,
    as torch calls it.
    """

    columns: tuple[CacheLayers, ...]
    cut: Cut
    rows: Mapping[str, FeatureRows]
    place: str

    @property
    def target(self) -> HeadTarget:
        """What a head is to say."""
        return self.cut.target

    @property
    def device(self) -> torch.device:
        """The device, for what computes with torch."""
        import torch

        return torch.device(self.place)

    @property
    def cache(self) -> FeatureCache:
        """The cache that says which images there are."""
        return self.columns[0].cache

    @property
    def origins(self) -> FeatureOrigin:
        """Where the features come from, as a run records it."""
        first, *others = (_origin(column) for column in self.columns)
        return replace(first, beside=tuple(others))

    @property
    def frozen(self) -> int | None:
        """Parameters of all backbones; None where one of the caches does not say."""
        counts = [column.cache.provenance.get("parameters") for column in self.columns]
        known = [count for count in counts if isinstance(count, int)]
        return sum(known) if len(known) == len(counts) else None

    def of(self, chosen: SplitRows) -> FeatureRows:
        """The features of other rows, of plain images, from the same caches and layers."""
        return joined_rows(self.columns, chosen, self.target)


def prepare(
    cache: FeatureCache,
    config: HeadConfig,
    *,
    beside: Sequence[FeatureCache] = (),
    place: str | torch.device,
    report: Report | None = None,
    cut: Cut | None = None,
) -> Prepared:
    """Choose layers and rows, and read none of them yet. `cut`: which rows, if not those that `config` says."""
    caches = (cache, *beside)
    target = head_target(cache, config.target) if cut is None else cut.target
    config.require_kind(target)
    require_same_images(caches, target)
    columns = choose_columns(caches, config.layers)
    cut = cut or cut_of(cache, config, target)
    tell(report, (*cut.notes, *views_notes(cache.spec, config.train_views)))
    rows = {
        part: joined_rows(columns, chosen, target, views)
        for part, chosen, views in (
            ("train", cut.train, cache["train"].views),
            ("val", cut.val, 1),
            ("test", cut.test, 1),
        )
        if chosen is not None
    }
    return Prepared(columns=columns, cut=cut, rows=rows, place=str(place))


def cut_of(cache: FeatureCache, config: HeadConfig, target: HeadTarget | None = None) -> Cut:
    """The rows that the options say. `target`: what is learned, if it has been looked up already."""
    return cut_cache(
        cache,
        val_fraction=config.val_fraction,
        val_seed=config.val_seed,
        target=target or head_target(cache, config.target),
        group=config.group,
        val_cut=config.val_cut,
    )


def open_prepared(
    prepared: Prepared, config: HeadConfig, *, report: Report | None = None, resident_bytes: int | None = None
) -> tuple[Batches, Batches]:
    """Train and val as batches, on the device where they fit.

    Where train is streamed, memory is short, and a val of more than one window is streamed too.
    """
    from featcache.rows.batches import WHOLE_BYTES, open_batches

    train, val, place = prepared.rows["train"], prepared.rows["val"], prepared.device
    opened = partial(open_batches, batch_size=config.head_batch_size, seed=config.seed, device=place)
    train_batches = opened(train, resident_bytes=resident_bytes, draw=config.draws_views)
    if not train_batches.resident_bytes:
        size = len(train) * train.row_bytes
        tell(report, [f"the train features ({size / 1e9:.1f} GB) do not fit in memory and are streamed"])
    left = None if resident_bytes is None else resident_bytes - train_batches.resident_bytes
    if not train_batches.resident_bytes:
        left = WHOLE_BYTES if left is None else min(left, WHOLE_BYTES)
    return train_batches, opened(val, resident_bytes=left)


def _origin(column: CacheLayers) -> FeatureOrigin:
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
            for array in map(cache["train"].layer, column.layers)
        ),
        weights=weights if isinstance(weights, str) else None,
        images=cache.selection.source,
        probe=probe if isinstance(probe, Mapping) else None,
    )
