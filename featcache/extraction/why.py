"""Why an existing cache matches a request, matches in part, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache.catalog import CacheEntry, caches_with_spec
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Difference, Spec
from featcache.display import Shown
from featcache.extraction.execution import Execution
from featcache.extraction.images import Images
from featcache.extraction.inventory import Inventory
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import resolve

_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A cache with another spec, and the fields in which it differs: `this` is requested, `that` is the cache's."""

    name: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Why(Shown):
    """Which rows of a request exist already.

    Attributes:
        state: "hit" (nothing to compute), "partial" or "miss".
        cache: The cache of the request, whether it exists or not.
        fingerprint: The fingerprint of the requested spec.
        rows: How many images the request has.
        to_compute: How many images no cache has.
        new, changed, gone: Ids of images that are new, changed or missing, compared with the cache.
        nearest: The caches with the most similar specs; none for a hit.
    """

    state: str
    cache: Path
    fingerprint: str
    rows: int
    to_compute: int
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    nearest: tuple[Neighbour, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache why --json`."""
        return {
            "state": self.state,
            "cache": str(self.cache),
            "fingerprint": self.fingerprint,
            "rows": self.rows,
            "to_compute": self.to_compute,
            "new": list(self.new),
            "changed": list(self.changed),
            "gone": list(self.gone),
            "nearest": [
                {"cache": one.name, "differences": [_plain(difference) for difference in one.differences]}
                for one in self.nearest
            ],
        }


def _plain(difference: Difference) -> dict[str, Any]:
    def value(it: Any) -> Any:
        if isinstance(it, Mapping):
            return {key: value(item) for key, item in it.items()}
        return list(it) if isinstance(it, tuple) else it

    return {"field": difference.field, "requested": value(difference.this), "cached": value(difference.that)}


def why(request: Request, *, reporter: Reporter) -> Why:
    """Find out which rows of a request exist already. Nothing is computed or written."""
    with resolve([request], Execution(on_error="skip"), reporter, measures=False) as (job,):
        job.images.remembers = False
        inventory = Inventory(job=job)
        existing = inventory.existing_cache()
        same = existing is not None and inventory.rows_in(existing) is not None
        hit = same or inventory.cache_with_more_layers() is not None
        missing = () if hit else inventory.missing(inventory.donors(existing))
        new, changed, gone = ((), (), ()) if same else _against(existing, job.images)
        return Why(
            state="hit" if hit else "miss" if len(missing) == len(job.images) else "partial",
            cache=existing.path if existing is not None else inventory.packed_path,
            fingerprint=job.spec.fingerprint,
            rows=len(job.images),
            to_compute=len(missing),
            new=new,
            changed=changed,
            gone=gone,
            nearest=() if hit else _nearest(job.spec, request),
        )


def _against(existing: FeatureCache | None, images: Images) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The ids of images that are new, changed and missing, compared with a cache."""
    if existing is None:
        return (), (), ()
    images.read_unknown(images.numbers)
    before = {
        (split, name): digest.tobytes()
        for split in existing.splits
        for name, digest in zip(existing[split].ids, existing[split].digests, strict=True)
    }
    lost = {(one.split, one.id) for one in existing.skipped}
    now = {
        (sample.split, sample.id): digest.tobytes()
        for sample, digest, known in zip(images.samples, images.digests, images.known, strict=True)
        if known
    }
    return (
        tuple(name for split, name in now if (split, name) not in before and (split, name) not in lost),
        tuple(name for (split, name), digest in now.items() if before.get((split, name), digest) != digest),
        tuple(name for split, name in before if (split, name) not in now),
    )


def _nearest(spec: Spec, request: Request) -> tuple[Neighbour, ...]:
    others = [entry for entry in caches_with_spec(request.features_dir) if entry.spec is not None]
    compared = [Neighbour(name=entry.name, differences=_differences(spec, entry)) for entry in others]
    unlike = [one for one in compared if one.differences]
    return tuple(sorted(unlike, key=lambda one: len(one.differences))[:_NEAREST])


def _differences(spec: Spec, entry: CacheEntry) -> tuple[Difference, ...]:
    return tuple(spec.differences(entry.spec)) if entry.spec is not None else ()
