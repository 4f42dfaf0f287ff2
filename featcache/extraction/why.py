"""Why an existing cache matches a request, matches in part, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache.catalog import CacheEntry, candidates
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Difference, Spec
from featcache.extraction.execution import Execution
from featcache.extraction.images import Images
from featcache.extraction.inventory import Inventory
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.resolve import resolve

_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A cache under another spec, and the fields in which it differs: this is what was asked, that is the cache's."""

    name: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Why:
    """`state` is hit (nothing to compute), partial or miss.

    `new`, `changed`, `gone`: ids against the cache of that name; `to_compute`: images that are nowhere.
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

    return {"field": difference.field, "asked": value(difference.this), "cached": value(difference.that)}


def why(request: Request, *, reporter: Reporter) -> Why:
    """Looks, computes nothing, writes nothing."""
    with resolve([request], Execution(on_error="skip"), reporter, measures=False) as (job,):
        job.images.remembers = False
        inventory = Inventory(job=job)
        standing = inventory.standing()
        same = standing is not None and inventory.rows_in(standing) is not None
        hit = same or inventory.wider() is not None
        missing = () if hit else inventory.missing(inventory.donors(standing))
        new, changed, gone = ((), (), ()) if same else _against(standing, job.images)
        return Why(
            state="hit" if hit else "miss" if len(missing) == len(job.images) else "partial",
            cache=standing.path if standing is not None else inventory.packed_path,
            fingerprint=job.spec.fingerprint,
            rows=len(job.images),
            to_compute=len(missing),
            new=new,
            changed=changed,
            gone=gone,
            nearest=() if hit else _nearest(job.spec, request),
        )


def _against(standing: FeatureCache | None, images: Images) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The ids of images that are new, changed and gone against a cache."""
    if standing is None:
        return (), (), ()
    images.read_unknown(images.numbers)
    before = {
        (split, name): digest.tobytes()
        for split in standing.splits
        for name, digest in zip(standing[split].ids, standing[split].digests, strict=True)
    }
    lost = {(one.split, one.id) for one in standing.skipped}
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
    others = [entry for entry in candidates(request.features_dir) if entry.spec is not None]
    compared = [Neighbour(name=entry.name, differences=_differences(spec, entry)) for entry in others]
    unlike = [one for one in compared if one.differences]
    return tuple(sorted(unlike, key=lambda one: len(one.differences))[:_NEAREST])


def _differences(spec: Spec, entry: CacheEntry) -> tuple[Difference, ...]:
    return tuple(spec.differences(entry.spec)) if entry.spec is not None else ()
