"""What an extraction reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache.spec import Json
from featcache.cache.tables import Skipped


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction did. `seconds` is all wall time, `images_per_s` the steady state (None: nothing computed).

    `computed` counts the rows that were nowhere before, `reused` those that were found. `shares` says which part of the
    time went into waiting for images, computing, and waiting for the disk (decode, compute, write; 1 in all), and
    `bound` which of them is the largest; both are None where nothing was computed. `drift` is
    what the cache's precision costs against fp32 (see `drift.Drift.to_json`), None in fp32. A shard is not
    `complete`: its `cache` is the folder of segments, and it counts its own rows.
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
        }
