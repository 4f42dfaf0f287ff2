"""What is shown of a cache: its splits, targets and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featcache.display import Summary, Table

if TYPE_CHECKING:
    from featcache.cache.reader import FeatureCache


def summary_of(cache: FeatureCache) -> Summary:
    """Three small tables."""
    layers = [
        (layer.name, " x ".join(map(str, layer.shape)), layer.feature_dim, cache.spec.dtype)
        for layer in cache.spec.layers
    ]
    targets = [
        (name, column.kind, len(column.names) or "", count_unlabelled(cache, name))
        for name, column in cache.targets.items()
    ]
    return Summary(
        title=cache.name,
        about=f"{cache.spec.backbone} on {cache.set_name}",
        tables=[
            Table(header=("split", "rows"), rows=[(name, len(cache[name])) for name in cache]),
            Table(header=("target", "kind", "names", "rows without a value"), rows=targets),
            Table(header=("layer", "shape", "features", "stored as"), rows=layers),
        ],
    )


def count_unlabelled(cache: FeatureCache, target: str) -> int:
    """The number of rows, in all splits, without a value of a target."""
    return sum(cache[split].target(target).unlabelled for split in cache)
