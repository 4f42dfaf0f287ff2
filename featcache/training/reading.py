"""The same batches that heads are trained on, for one's own loop, for scikit-learn, for Lightning.

    train = read_batches("digits-vgg16-....h5", "train", batch_size=64)
    for epoch in range(10):
        for features, labels in train.epoch(epoch):    # float32 (B, D), int64 (B,)
            ...

`train.epoch(n)` is a pure function of n, the seed, the batch size and the rows: the same whether the features fit in
memory or are streamed. `for features, labels in train` is the next epoch each time, which is what a Trainer wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided
from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.rows.batches import Batches, open_batches
from featcache.rows.devices import choose_device
from featcache.rows.notes import Report
from featcache.rows.options import RowOptions
from featcache.training.preparation import prepare


@accepts(RowOptions)
def read_batches(
    cache: FeatureCache | str | Path,
    part: Literal["train", "val", "test"] = "train",
    *,
    beside: Sequence[FeatureCache | str | Path] = (),
    batch_size: int = HeadConfig.head_batch_size,
    seed: int = HeadConfig.seed,
    device: str = "cpu",
    resident_bytes: int | None = None,
    report: Report | None = None,
    **options: Any,
) -> Batches:
    """The labelled rows of one part of a cache as batches, cut as `train_head` cuts them.

    `.epoch(number)` gives all rows once, shuffled: features float32 (B, D) and labels int64 (B,), on `device`;
    `.in_order()` gives them as they stand in the cache; iterating over it is the next epoch each time; `len` is the
    number of batches of an epoch; `.targets` are those of all rows in the order of the cache. Augmented views of train
    follow each other, the plain images first; with `train_views="draw"` an epoch has one view of each image.

    A cache that is given as a path stays open as long as the batches.

    Args:
        cache: An open cache or the path of one.
        part: "train", "val" or "test".
        beside: Further caches of the same images, as in `train_head`.
        batch_size: Rows of a batch.
        seed: Decides the order of the rows in each epoch.
        device: Where batches are put: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
        resident_bytes: Memory that features may take on the device before they are streamed; None for a share of what
            is free.
        report: Called with a sentence about whatever was left out.
        {options}

    Raises:
        HeadError: The cache has no labelled images of that part.
        InvalidOption, UnknownName, CacheError: As in `train_head`.
    """
    own = ("batch_size", "seed", "device", "resident_bytes")
    (given,) = divided(options, "read_batches", RowOptions, also=own)
    config = HeadConfig(head_batch_size=batch_size, seed=seed, **given)
    first, *others = (one if isinstance(one, FeatureCache) else FeatureCache.open(one) for one in (cache, *beside))
    place = choose_device(device)
    config = config.for_views(first.spec.views)
    rows = prepare(first, config, beside=others, place=place, report=report).rows
    if part not in rows:
        raise HeadError(
            f"expected a part with labelled images, one of {', '.join(rows)} of {first.name}, got {part!r}",
            hint="extract with that split, or name another part",
        )
    draw = config.draws_views and part == "train"
    return open_batches(
        rows[part], batch_size=batch_size, seed=seed, device=place, resident_bytes=resident_bytes, draw=draw
    )
