"""Audits of a cache (leaks, duplicates, label errors, outliers) and 2-D maps of its features.

    audit = audit_cache(cache)                      # leaks, label errors, duplicates, outliers, splits
    points = project(cache["test"].features, labels=cache["test"].labels)

`options` are those of an audit, `records` defines its results, and `audit` runs all checks: `directions`, `pairs`,
`pictures` and `copies` find images that occur twice, `folds` and `label_errors` find wrong labels, `outliers`,
`split_checks` and `target_checks` do the rest. `projection` computes the map. Names are imported when they are first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.analysis.audit import audit_cache
    from featcache.analysis.projection import Projection, project
    from featcache.analysis.records import Audit, Finding, Link, Section

__all__ = ["Audit", "Finding", "Link", "Projection", "Section", "audit_cache", "project"]

_HOMES = {
    "Audit": "records",
    "Finding": "records",
    "Link": "records",
    "Projection": "projection",
    "Section": "records",
    "audit_cache": "audit",
    "project": "projection",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
