"""Caches of features: HDF5 files, the specs of what they hold, and the checks of both.

A spec records everything that determines a feature. Rows are written into segments as they are computed; a manifest
lists the segments of a cache; a small cache is packed into one file. `FeatureCache` reads both forms. This package
uses NumPy and h5py, never torch. Names are imported at their first use, so that listing caches is fast.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Must be set before anything here imports h5py: libhdf5 reads it when it is loaded, and then loads no filter plugins.
# A file from elsewhere may name any plugin.
os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")

if TYPE_CHECKING:
    from featcache.cache.catalog import CacheEntry as CacheEntry
    from featcache.cache.catalog import caches_with_spec as caches_with_spec
    from featcache.cache.catalog import find as find
    from featcache.cache.catalog import list_caches as list_caches
    from featcache.cache.catalog import mark_used as mark_used
    from featcache.cache.donors import Donor as Donor
    from featcache.cache.donors import Donors as Donors
    from featcache.cache.donors import Located as Located
    from featcache.cache.locks import Owner as Owner
    from featcache.cache.locks import lock_cache as lock_cache
    from featcache.cache.reader import CachedDataset as CachedDataset
    from featcache.cache.reader import CachedSplit as CachedSplit
    from featcache.cache.reader import FeatureArray as FeatureArray
    from featcache.cache.reader import FeatureCache as FeatureCache
    from featcache.cache.spec import Difference as Difference
    from featcache.cache.spec import LayerSpec as LayerSpec
    from featcache.cache.spec import Selection as Selection
    from featcache.cache.spec import Spec as Spec
    from featcache.cache.spec import cache_name as cache_name
    from featcache.cache.tables import Skipped as Skipped
    from featcache.cache.tables import SplitTable as SplitTable
    from featcache.cache.verification import Verification as Verification
    from featcache.cache.verification import verify as verify
    from featcache.cache.writer import write_packed as write_packed

_WHERE = {
    "CacheEntry": "catalog",
    "CachedDataset": "reader",
    "CachedSplit": "reader",
    "Difference": "spec",
    "Donor": "donors",
    "Donors": "donors",
    "FeatureArray": "reader",
    "FeatureCache": "reader",
    "LayerSpec": "spec",
    "Located": "donors",
    "Owner": "locks",
    "Selection": "spec",
    "Skipped": "tables",
    "Spec": "spec",
    "SplitTable": "tables",
    "Verification": "verification",
    "cache_name": "spec",
    "caches_with_spec": "catalog",
    "find": "catalog",
    "list_caches": "catalog",
    "lock_cache": "locks",
    "mark_used": "catalog",
    "verify": "verification",
    "write_packed": "writer",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
