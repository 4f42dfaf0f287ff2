"""The number of threads in training: one where that is faster, and always the recorded number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from head_caches import blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.runs.fit import fit_head, train_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.training.threads import training_threads

CONFIG = HeadConfig(head="mlp:16,8", max_epochs=3)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return write_cache(tmp_path, {"train": blobs(120), "test": blobs(60, seed=1)})


def test_threads_are_as_before_outside() -> None:
    with pytest.raises(KeyboardInterrupt), training_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 4
    with training_threads(None):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("requested", "used"), [(None, 1), (3, 3)])
def test_a_head_is_trained_with_the_threads_that_its_run_records(
    cache: FeatureCache, tmp_path: Path, requested: int | None, used: int
) -> None:
    seen: set[int] = set()

    def look(record: EpochRecord) -> None:
        seen.add(torch.get_num_threads())

    run = fit_head(cache, CONFIG, runs_dir=tmp_path / "runs", threads=requested, progress=look)
    assert seen == {used} and run.training.threads == used
    assert Run.load(run.folder).training.threads == used
    assert torch.get_num_threads() == 4


def test_a_training_resumes_with_the_same_number_of_threads(cache: FeatureCache, tmp_path: Path) -> None:
    def stop(record: EpochRecord) -> None:
        raise KeyboardInterrupt

    fit_head(cache, CONFIG, runs_dir=tmp_path / "runs", threads=3, progress=stop, checkpoint_every_s=0.0)
    torch.set_num_threads(2)
    assert resume_head(runs_dir=tmp_path / "runs").training.threads == 3


@pytest.mark.parametrize(("head", "threads"), [("linear", 0), ("ridge", 2)])
def test_invalid_threads_are_refused(cache: FeatureCache, tmp_path: Path, head: str, threads: int) -> None:
    with pytest.raises(InvalidOption, match="threads"):
        train_head(cache, head, runs_dir=tmp_path / "runs", threads=threads)
