"""Choose the caches, layers, rows and device of a training, before any features are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from featcache.cache.reader import FeatureCache
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import Cut, SplitRows, cut_cache
from featcache.rows.features import FeatureRows
from featcache.rows.joining import CacheLayers, choose_columns, join_rows, origin_of, require_same_images
from featcache.rows.notes import Report, report_notes
from featcache.rows.origins import FeatureOrigin
from featcache.rows.target import HeadTarget, head_target
from featcache.rows.views import views_notes

if TYPE_CHECKING:
    import torch

    from featcache.rows.batches import Batches


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """The rows for train, val and test of one or many heads, and the device.

    Attributes:
        columns: The caches and layers to read; the first cache determines the images.
        cut: The images of each part, with their targets.
        rows: The features of "train", in all views, of "val", and of "test" if there are labelled test images.
        device_name: Torch's name of the device.
    """

    columns: tuple[CacheLayers, ...]
    cut: Cut
    rows: Mapping[str, FeatureRows]
    device_name: str

    @property
    def target(self) -> HeadTarget:
        """The target of the heads."""
        return self.cut.target

    @property
    def device(self) -> torch.device:
        """The device as a torch object; imports torch."""
        import torch

        return torch.device(self.device_name)

    @property
    def cache(self) -> FeatureCache:
        """The first cache, which determines the images."""
        return self.columns[0].cache

    @property
    def origins(self) -> FeatureOrigin:
        """The origin of the features, as a run records it."""
        first, *others = (origin_of(column) for column in self.columns)
        return replace(first, beside=tuple(others))

    @property
    def frozen(self) -> int | None:
        """Number of parameters of all backbones; None if a cache does not record it."""
        counts = [column.cache.provenance.get("parameters") for column in self.columns]
        known = [count for count in counts if isinstance(count, int)]
        return sum(known) if len(known) == len(counts) else None

    def of(self, chosen: SplitRows) -> FeatureRows:
        """The features of other rows, for plain images, from the same caches and layers."""
        return join_rows(self.columns, chosen, self.target)


def prepare(
    cache: FeatureCache,
    config: HeadConfig,
    *,
    beside: Sequence[FeatureCache] = (),
    device: str | torch.device,
    report: Report | None = None,
    cut: Cut | None = None,
) -> Prepared:
    """Choose layers and rows, without reading features. `cut`: the rows; None for those that `config` determines."""
    caches = (cache, *beside)
    target = head_target(cache, config.target) if cut is None else cut.target
    config.require_kind(target)
    require_same_images(caches, target)
    columns = choose_columns(caches, config.layers)
    cut = cut or cut_of(cache, config, target)
    report_notes(report, (*cut.notes, *views_notes(cache.spec, config.train_views)))
    rows = {
        part: join_rows(columns, chosen, target, views)
        for part, chosen, views in (
            ("train", cut.train, cache["train"].views),
            ("val", cut.val, 1),
            ("test", cut.test, 1),
        )
        if chosen is not None
    }
    return Prepared(columns=columns, cut=cut, rows=rows, device_name=str(device))


def cut_of(cache: FeatureCache, config: HeadConfig, target: HeadTarget | None = None) -> Cut:
    """The train, val and test rows of a cache that have a value of the target, with these values.

    Val is the cache's own val split if it has such rows; otherwise it is taken from train, by the val_fraction,
    val_cut, val_seed and group of `config`. `target`: None for that of `config`. Raises what `cut_cache` raises.
    """
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
    """Open train and val as batches: on the device if they fit, else streamed.

    If train is streamed, memory is scarce, and a val of more than one window is streamed too.
    """
    from featcache.rows.batches import WHOLE_BYTES, open_batches

    train, val = prepared.rows["train"], prepared.rows["val"]
    open_rows = partial(open_batches, batch_size=config.head_batch_size, seed=config.seed, device=prepared.device)
    train_batches = open_rows(train, resident_bytes=resident_bytes, draw=config.draws_views)
    if not train_batches.resident_bytes:
        size = len(train) * train.row_bytes
        report_notes(report, [f"the train features ({size / 1e9:.1f} GB) do not fit in memory and are streamed"])
    left = None if resident_bytes is None else resident_bytes - train_batches.resident_bytes
    if not train_batches.resident_bytes:
        left = WHOLE_BYTES if left is None else min(left, WHOLE_BYTES)
    return train_batches, open_rows(val, resident_bytes=left)
