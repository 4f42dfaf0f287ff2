"""A streamed cache is never in memory as a whole. Measured in a new process, because a memory peak never falls."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from head_caches import blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.extraction.processes import peak_bytes, run_in_new_process
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.heads.config import HeadConfig
from featcache.rows import batches, features
from featcache.rows.views import TRAIN_VIEWS, TrainViews
from featcache.runs.fit import fit_head

DIM = 8192
ROWS = 3000
FEATURES_BYTES = 2 * DIM * ROWS
VIEWS = 3
# (name of the cache, bytes that features may take)
TRAININGS = (("small", 0), ("large", 0), ("large", FEATURES_BYTES))


@dataclass(frozen=True, kw_only=True)
class Task:
    caches: dict[str, Path]
    head_batch_size: int
    train_views: TrainViews | None
    runs_dir: Path


def peaks(task: Task, _: Reporter) -> list[int]:
    """The memory peak after each of TRAININGS."""
    torch.set_num_threads(1)
    # A sixteenth of their values, since the cache is a sixteenth of one that has to be streamed.
    names = ("WINDOW_BYTES", "WHOLE_BYTES", "PIECE_BYTES", "TAKEN_BYTES")
    for module, name in [*((batches, name) for name in names), (features, "BLOCK_BYTES")]:
        setattr(module, name, getattr(module, name) >> 4)
    config = HeadConfig(head="linear", lr=1e-3, max_epochs=2, patience=2, head_batch_size=task.head_batch_size)
    config = replace(config, train_views=task.train_views)
    found = []
    for name, budget in TRAININGS:
        with FeatureCache.open(task.caches[name]) as cache:
            fit_head(cache, config, runs_dir=task.runs_dir, resident_bytes=budget, checkpoint_every_s=0.0)
        found.append(peak_bytes())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is the kernel's")
@pytest.mark.parametrize(
    ("head_batch_size", "train_views"),
    [
        pytest.param(
            size, views, id=f"batches in {how}, {views}", marks=pytest.mark.slow if size > 16 and views else ()
        )
        for size, how in ((16, "batches in windows"), (256, "batches in pieces"))
        for views in (None, *TRAIN_VIEWS)
    ],
)
def test_a_streamed_cache_is_not_in_memory(
    tmp_path: Path, head_batch_size: int, train_views: TrainViews | None
) -> None:
    views = 1 if train_views is None else VIEWS
    caches = {
        name: write_cache(tmp_path / name, {"train": blobs(rows // views, dim=DIM, views=views)}).path
        for name, rows in (("small", 300), ("large", ROWS))
    }
    task = Task(caches=caches, head_batch_size=head_batch_size, train_views=train_views, runs_dir=tmp_path / "runs")
    small, streamed, resident = run_in_new_process(peaks, task, LogReporter()).result
    assert streamed - small < FEATURES_BYTES / 3
    # The peak of the resident training shows that the measurement works.
    assert resident - streamed > FEATURES_BYTES / 3
