"""Why an existing cache matches a request, matches in part, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from featcache.cache.catalog import CacheEntry, candidates
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import Difference, Spec
from featcache.extraction.job import Job
from featcache.extraction.reporting import Reporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, prepared

_NEAREST = 3


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A cache under another spec, and the fields in which it differs: this is what was asked, that is the cache's."""

    name: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Why:
    """`state` is hit (nothing to compute), partial or miss.

    `new`, `changed`, `gone`: ids against the cache of that name; `to_compute`: rows that are nowhere.
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
    with prepared(request, Execution(on_error="skip"), reporter, measures=False) as job:
        plan, inventory = job.plan, job.inventory
        standing = inventory.standing()
        same = standing is not None and inventory.is_hit(standing, plan)
        hit = same or inventory.wider(plan) is not None
        to_compute = 0 if hit else len(job.missing(plan, inventory.donors(standing)))
        new, changed, gone = ((), (), ()) if same else _against(standing, job)
        return Why(
            state="hit" if hit else "miss" if to_compute == plan.rows else "partial",
            cache=standing.path if standing is not None else job.inventory.packed_path,
            fingerprint=job.spec.fingerprint,
            rows=plan.rows,
            to_compute=to_compute,
            new=new,
            changed=changed,
            gone=gone,
            nearest=() if hit else _nearest(job.spec, request),
        )


def _against(standing: FeatureCache | None, job: Job) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if standing is None:
        return (), (), ()
    before = {
        (split, name): digest.tobytes()
        for split in standing.splits
        for name, digest in zip(standing[split].ids, standing[split].digests, strict=True)
    }
    lost = {(one.split, one.id) for one in standing.skipped}
    plan = job.plan
    now = {
        (sample.split, sample.id): digest.tobytes()
        for sample, digest in zip(plan.all_samples(), chain(*plan.row_digests().values()), strict=True)
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
