"""Findings: what stands in a cache that should not, and what its features look like on a plane.

    audit = audit_cache(cache)                      # leaks, duplicates, label errors, outliers, splits
    points = project(cache["test"].features, labels=cache["test"].labels)

`records` says what is found; `audit` joins what finds it. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.analysis.records import Audit, Finding, Link, Section

__all__ = ["Audit", "Finding", "Link", "Section"]

_HOMES = {
    "Audit": "records",
    "Finding": "records",
    "Link": "records",
    "Section": "records",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
