"""A cache as HTML for notebooks: its splits, targets and layers as small tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.cache.reader import FeatureCache


def as_html(cache: FeatureCache) -> str:
    """A heading and three tables, with every text escaped. They have no style of their own."""
    layers = [
        (layer.name, " x ".join(map(str, layer.shape)), f"{layer.feature_dim:,}", cache.spec.dtype)
        for layer in cache.spec.layers
    ]
    splits = [(name, f"{len(cache[name]):,}") for name in cache]
    targets = [
        (name, column.kind, f"{len(column.names):,}" if column.names else "", f"{count_unlabelled(cache, name):,}")
        for name, column in cache.targets.items()
    ]
    about = f"{cache.spec.backbone} on {cache.set_name}"
    tables = (
        _table(("split", "rows"), splits)
        + _table(("target", "kind", "names", "rows without a value"), targets)
        + _table(("layer", "shape", "features", "stored as"), layers)
    )
    return f"<div><p><strong>{escape(cache.name)}</strong><br>{escape(about)}</p>{tables}</div>"


def count_unlabelled(cache: FeatureCache, target: str) -> int:
    """The number of rows, in all splits, without a value of a target."""
    return sum(cache[split].target(target).unlabelled for split in cache)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
