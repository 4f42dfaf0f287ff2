"""Read cached features as batches, for your own training loop, for scikit-learn or for Lightning.

    train = read_batches("digits-vgg16-....h5", "train", batch_size=64)
    for epoch in range(10):
        for features, labels in train.epoch(epoch):    # float32 (B, D), int64 (B,)
            ...

`train.epoch(n)` is a pure function of n, the seed, the batch size and the rows: it is the same whether the features fit
in memory or are streamed. `for features, labels in train` iterates over the next epoch each time, as a Trainer expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
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
    """Read the labelled rows of one part of a cache as batches: the same rows and batches as in `train_head`.

    A cache that is given as a path stays open as long as the batches exist.

    Args:
        cache: An open cache or the path of one.
        part: "train", "val" or "test".
        beside: Further caches of the same images, as in `train_head`.
        batch_size: Rows per batch.
        seed: Seed of the order of the rows in each epoch.
        device: Device of the batches: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
        resident_bytes: The most bytes that features may take on the device; above that they are streamed. None for a
            share of the free memory.
        report: Called with notes for the user.
        {options}

    Returns:
        The batches. `.epoch(number)` iterates over all rows once, shuffled: features float32 (B, D) and labels int64
        (B,), on `device`; `.in_order()` over the same in the order of the cache. Iterating over the object itself is
        the next epoch each time. `len` is the number of batches of an epoch, and `.targets` are the targets of all rows
        in the order of the cache. Train rows with augmented views are ordered view after view, the plain images first;
        with `train_views="draw"` an epoch has one view of each image.

    Raises:
        HeadError: The cache has no labelled images of that part.
        InvalidOption, UnknownName, CacheError: As in `train_head`.
    """
    own = ("batch_size", "seed", "device", "resident_bytes")
    (given,) = divide_options(options, "read_batches", RowOptions, also=own)
    config = HeadConfig(head_batch_size=batch_size, seed=seed, **given)
    first, *others = (one if isinstance(one, FeatureCache) else FeatureCache.open(one) for one in (cache, *beside))
    chosen = choose_device(device)
    config = config.for_views(first.spec.views)
    rows = prepare(first, config, beside=others, device=chosen, report=report).rows
    if part not in rows:
        raise HeadError(
            f"expected a part with labelled images, one of {', '.join(rows)} of {first.name}, got {part!r}",
            hint="extract with that split, or choose another part",
        )
    draw = config.draws_views and part == "train"
    return open_batches(
        rows[part], batch_size=batch_size, seed=seed, device=chosen, resident_bytes=resident_bytes, draw=draw
    )
