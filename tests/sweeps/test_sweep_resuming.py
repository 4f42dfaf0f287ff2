"""A resumed sweep ends with the same table and the same heads as an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_caches import Blobs, blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.sweeps.api import resume_sweep, sweep
from featcache.sweeps.records import Sweep
from featcache.sweeps.sweeping import sweep_heads
from featcache.training.checkpoint_file import CHECKPOINT_FILE

OPTIONS: dict[str, Any] = {"max_epochs": 6, "patience": 6, "head_batch_size": 32, "standardize": True}


class CutOffError(Exception):
    """Simulates a power cut: nothing after it is executed."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {"train": blobs(120, distance=0.4), "test": blobs(60, seed=1, distance=0.4)}
    return write_cache(tmp_path_factory.mktemp("cut"), splits)


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.training.engine.PROGRESS_EVERY_S", 0.0)


def grid(**changes: Any) -> dict[str, Any]:
    return {"lr": [3e-3, 1e-2], "head": ["linear", "mlp:8"]} | changes


def after(epochs: int, raised: type[BaseException] = CutOffError) -> Callable[[int, int], None]:
    """A progress callback that ends the sweep once this many epochs are done."""

    def progress(done: int, total: int) -> None:
        if done >= epochs:
            raise raised

    return progress


def swept(cache: FeatureCache, runs_dir: Path, **options: Any) -> Sweep:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.sweeps.api.sweep_heads", _checkpointing)
        return sweep(cache, runs_dir=runs_dir, **{**OPTIONS, "grid": grid(), **options})


def _checkpointing(*given: Any, **options: Any) -> Sweep:
    return sweep_heads(*given, **{**options, "checkpoint_every_s": 0.0})


def cut_off(cache: FeatureCache, runs_dir: Path, epochs: int, **options: Any) -> Path:
    with pytest.raises(CutOffError):
        swept(cache, runs_dir, progress=after(epochs), **options)
    (path,) = runs_dir.glob(f"*.unfinished/{CHECKPOINT_FILE}")
    return path.parent


def numbers(found: Sweep) -> list[Any]:
    """Everything that a sweep computes, without times and folders."""
    rows = [
        (row.values, row.shots, [replace(head, seconds=0.0) for head in row.heads], row.estimate, row.test)
        for row in found.rows
    ]
    run = None if found.run is None else Run.load(found.run)
    return [rows, found.chosen, found.test, run and (run.weights_sha256, run.training.val, run.training.last)]


@pytest.mark.parametrize("epochs", [9, 13, 20])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seeds": 2, "grid": grid(head=["mlp:8"], dropout=[0.0, 0.3])},
        {"folds": 2, "grid": grid(head=["linear"], batch_norm=[False])},
        {"shots": (4, 8), "draws": 2, "grid": grid(head=["linear"])},
        {"grid": grid(head_batch_size=[16, 32], head=["linear"], schedule=["plateau", "cosine"])},
    ],
    ids=["heads", "seeds", "folds", "shots", "waves"],
)
def test_a_resumed_sweep_ends_to_the_bit_as_one_that_never_stopped(
    cache: FeatureCache, tmp_path: Path, options: dict[str, Any], epochs: int
) -> None:
    whole = swept(cache, tmp_path / "whole", **options)
    folder = cut_off(cache, tmp_path / "cut", epochs, **options)
    resumed = resume_sweep(runs_dir=tmp_path / "cut")
    assert numbers(resumed) == numbers(whole)
    assert resumed.folder.name == folder.name.removesuffix(".unfinished")
    assert not folder.exists() and not resumed.interrupted


@pytest.mark.parametrize("epochs", [(15, 21), (15, 33), (27, 39), (21, 45)])
def test_a_sweep_that_is_cut_off_twice_ends_as_one_that_never_stopped(
    cache: FeatureCache, tmp_path: Path, epochs: tuple[int, int]
) -> None:
    # Each wave is better than the one before, so the best head at the interruption is no longer the best at the end.
    options = {"grid": grid(head=["linear"], lr=[1e-4, 3e-4], head_batch_size=[128, 64, 32, 16])}
    whole = swept(cache, tmp_path / "whole", **options)
    cut_off(cache, tmp_path / "cut", epochs[0], **options)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr("featcache.sweeps.api.sweep_heads", _checkpointing)
        resume_sweep(runs_dir=tmp_path / "cut", progress=after(epochs[1]))
    assert numbers(resume_sweep(runs_dir=tmp_path / "cut")) == numbers(whole)


def test_finished_heads_are_not_trained_again(cache: FeatureCache, tmp_path: Path) -> None:
    options = {"grid": grid(head=["linear"], head_batch_size=[16, 32])}
    # The heads with batches of 16 come first: 2 x 6 epochs.
    cut_off(cache, tmp_path, 15, **options)
    done: list[int] = []
    resume_sweep(runs_dir=tmp_path, progress=lambda epochs, total: done.append(epochs))
    assert done[:2] == [6, 12]


def test_a_resumed_sweep_that_was_interrupted_is_another_folder(cache: FeatureCache, tmp_path: Path) -> None:
    whole = swept(cache, tmp_path / "whole")
    stopped = swept(cache, tmp_path / "cut", progress=after(9, KeyboardInterrupt))
    assert stopped.interrupted and (stopped.folder / CHECKPOINT_FILE).exists()
    resumed = resume_sweep(stopped.folder, runs_dir=tmp_path / "cut")
    assert numbers(resumed) == numbers(whole)
    assert resumed.folder != stopped.folder and Sweep.load(stopped.folder) == stopped


def test_other_rows_are_refused(cache: FeatureCache, tmp_path: Path) -> None:
    there = write_cache(tmp_path / "cache", {"train": blobs(120, distance=0.4), "test": blobs(60, seed=1)})
    cut_off(there, tmp_path / "runs", 7)
    there.close()
    plain = blobs(120, distance=0.4)
    labels = np.roll(plain.labels, 1)
    write_cache(tmp_path / "cache", {"train": Blobs(features=plain.features, labels=labels), "test": blobs(60, seed=1)})
    with pytest.raises(HeadError, match="other rows or targets"):
        resume_sweep(runs_dir=tmp_path / "runs")


def test_a_sweep_is_not_taken_for_a_single_training(cache: FeatureCache, tmp_path: Path) -> None:
    folder = cut_off(cache, tmp_path, 7)
    with pytest.raises(HeadError, match="no training in"):
        resume_head(runs_dir=tmp_path)
    with pytest.raises(HeadError, match="is a sweep") as caught:
        resume_head(folder, runs_dir=tmp_path)
    assert "featcache sweep --resume" in str(caught.value.hint)
