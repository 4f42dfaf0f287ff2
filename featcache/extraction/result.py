"""The result of an extraction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache.spec import Json
from featcache.cache.tables import Skipped
from featcache.display import Shown
from featcache.extraction.listed import Listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featcache.cache.reader import FeatureCache
    from featcache.extraction.resolve import Job


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What one extraction computed.

    Args:
        rows: How many images were computed, because no cache had them.
        images_per_s: The speed of computing; None where nothing was computed.
    """

    rows: int = 0
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Extraction(Shown):
    """What an extraction did.

    Attributes:
        cache: The cache; of a shard, the folder of segments.
        fingerprint: The fingerprint of the spec.
        rows: Rows by split.
        feature_dim: D by layer.
        computed: How many images were computed.
        reused: How many images had rows already.
        skipped: Images that could not be read.
        seconds: Wall time.
        images_per_s: The speed of computing; None where nothing was computed.
        shares: The shares of the time spent waiting for images, computing, and waiting for the disk ("decode",
            "compute", "write"; 1 in all); None where nothing was computed.
        bound: The stage with the largest share; None where nothing was computed.
        drift: The error of the precision against fp32 (see `drift.Drift.to_json`); None in fp32.
        complete: Whether the cache is complete; False for a shard, which counts its own rows.
        images: A summary of the images, and of what was left out; None for a shard.
    """

    cache: Path
    fingerprint: str
    rows: dict[str, int]
    feature_dim: dict[str, int]
    computed: int
    reused: int
    skipped: tuple[Skipped, ...]
    seconds: float
    images_per_s: float | None
    shares: dict[str, float] | None = None
    bound: str | None = None
    drift: Json = None
    complete: bool = True
    images: Listed | None = None

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache extract --json`."""
        return {
            "cache": str(self.cache),
            "fingerprint": self.fingerprint,
            "complete": self.complete,
            "rows": self.rows,
            "feature_dim": self.feature_dim,
            "computed": self.computed,
            "reused": self.reused,
            "skipped": [{"id": one.id, "reason": one.reason} for one in self.skipped],
            "seconds": round(self.seconds, 3),
            "images_per_s": None if self.images_per_s is None else round(self.images_per_s, 2),
            "shares": None if self.shares is None else {stage: round(part, 4) for stage, part in self.shares.items()},
            "bound": self.bound,
            "drift": self.drift,
            "images": None if self.images is None else self.images.to_json(),
        }


def report_existing(cache: FeatureCache) -> Extraction:
    """What is reported of a complete cache that nothing was done to."""
    rows = {split: len(cache[split]) for split in cache.splits}
    return Extraction(
        cache=cache.path,
        fingerprint=cache.spec.fingerprint,
        rows=rows,
        feature_dim={layer.name: layer.feature_dim for layer in cache.spec.layers},
        computed=0,
        reused=sum(rows.values()),
        skipped=tuple(cache.skipped),
        seconds=0.0,
        images_per_s=None,
        drift=cache.provenance.get("drift"),
    )


def report_cache(job: Job, cache: FeatureCache, computed: Computed) -> Extraction:
    """The result of a complete cache."""
    rows = {split: len(cache[split]) for split in cache.splits}
    return Extraction(
        cache=job.request.features_dir / cache.path.name,
        complete=True,
        fingerprint=cache.spec.fingerprint,
        rows=rows,
        reused=max(0, sum(rows.values()) - computed.rows),
        skipped=tuple(cache.skipped),
        drift=cache.provenance.get("drift"),
        images=Listed.of(job.images),
        **_of(job, computed),
    )


def report_share(job: Job, folder: Path, computed: Computed, *, images: int, skipped: Sequence[Skipped]) -> Extraction:
    """The result of a share of `images` images, whose segments are in a folder."""
    return Extraction(
        cache=folder,
        complete=False,
        fingerprint=job.spec.fingerprint,
        rows=job.images.rows_of_splits,
        reused=images - len(skipped) - computed.rows,
        skipped=tuple(skipped),
        drift=job.drift,
        **_of(job, computed),
    )


def _of(job: Job, computed: Computed) -> dict[str, Any]:
    return {
        "feature_dim": {layer.name: layer.feature_dim for layer in job.spec.layers},
        "computed": computed.rows,
        "seconds": job.watch.read() + sum(job.stages.seconds.values()),
        "images_per_s": computed.images_per_s,
        "shares": job.stages.shares,
        "bound": job.stages.bound,
    }
