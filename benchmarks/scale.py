"""Measures a training on ten million simulated rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Bench, in_new_process, measurement, memory, time_of


@measurement("scale:training", "1 min", rows=40_000)
def training(bench: Bench, *, rows: int = 10_000_000) -> dict[str, Any]:
    """A cache of ten million rows of 2,048, real but for its rows, which are holes: listing, opening, a first batch."""
    from storage import make_hollow_cache

    path = str(make_hollow_cache(bench.scratch / "features" / "hollow", rows, 2048))
    return {
        "rows": rows,
        "feature_dim": 2048,
        # In processes of their own, to measure memory separately.
        "catalogue": in_new_process(catalogue, path),
        "first_batch": in_new_process(start, path, False),
        "first_step": in_new_process(start, path, True),
    }


def catalogue(path: str) -> dict[str, Any]:
    """List caches, as `featcache ls` does."""
    from featcache.cache.catalog import list_caches

    taken = time_of(lambda: list_caches(Path(path).parent))
    (entry,) = taken.result
    return {"listing_s": round(taken.clock, 3), "state": entry.state, "peak_mib": memory() >> 20}


def start(path: str, whole: bool) -> dict[str, Any]:
    """Open the cache and read the first batch; `whole`: as a training does, which digests and standardises the rows."""
    import torch

    import featcache.runs.fit
    from featcache.cache.reader import FeatureCache
    from featcache.heads.config import HeadConfig
    from featcache.training.checkpoints import rows_digest
    from featcache.training.fitting import standardisation
    from featcache.training.preparation import open_prepared, prepare

    # With everything that a training imports, so that memory is comparable.
    assert featcache.runs.fit
    found: dict[str, Any] = {"imports_mib": memory("VmRSS") >> 20}
    config = HeadConfig(head="linear", head_batch_size=64)

    def stage(name: str, work: Callable[[], Any]) -> Any:
        taken = time_of(work)
        found[name] = round(taken.clock, 3)
        return taken.result

    def first_batch() -> None:
        with stage("open_s", lambda: FeatureCache.open(path)) as cache:
            prepared = stage("cut_s", lambda: prepare(cache, config, device=torch.device("cpu")))
            if whole:
                stage("identity_s", lambda: rows_digest(prepared))
            train, _val = open_prepared(prepared, config)
            if whole:
                stage("standardising_s", lambda: standardisation(train))
            next(train.epoch(0, reuse=True))
            found.update(train_rows=len(train.rows), streamed=not train.resident_bytes)

    stage("seconds", first_batch)
    return found | {"peak_mib": memory() >> 20}
