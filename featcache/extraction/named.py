"""Find a cache by its name, or because it is the only one; by options: `matching`, which knows of backbones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.cache.catalog import find, list_caches


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete cache and, of its layers, those that were asked for (None: all it has)."""

    path: Path
    layers: tuple[str, ...] | None = None


def by_name(features_dir: Path, name: str) -> Found:
    """The complete cache of that path, name or unique beginning of a name. Raises CacheError."""
    return Found(path=find(features_dir, name).require_complete())


def only_cache(features_dir: Path, backbone: str | None = None) -> Found | None:
    """The only complete cache there is (of `backbone`, if given); None where there are none or several."""
    complete = [
        entry
        for entry in list_caches(features_dir)
        if entry.complete and (backbone is None or (entry.spec is not None and entry.spec.backbone == backbone))
    ]
    return Found(path=complete[0].path) if len(complete) == 1 else None
