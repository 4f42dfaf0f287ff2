"""How many threads train a head: one where that is faster, and always as many as are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from head_caches import blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption
from featcache.heads.architectures import HeadShape
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.runs.fit import fit_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.training import threads as threads_module
from featcache.training.threads import choose_threads, training_threads

CPU = torch.device("cpu")
CONFIG = HeadConfig(head="mlp:16,8", max_epochs=3)
SHAPE = HeadShape(in_features=16, classes=3, hidden=(16, 8), dropout=0.2)


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return write_cache(tmp_path, {"train": blobs(120), "test": blobs(60, seed=1)})


class Clock:
    """A clock that runs as fast as the number of threads says."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.calls = count()

    def __call__(self) -> float:
        # Every second call ends a step.
        self.now += self.seconds[torch.get_num_threads()] * (next(self.calls) % 2)
        return self.now


@pytest.mark.parametrize(
    ("one", "four", "chosen"),
    [(0.010, 0.004, 4), (0.010, 0.0095, 1), (0.010, 0.010, 1), (0.001, 0.150, 1), (1.0, 0.3, 4)],
    ids=["faster", "hardly faster", "as fast", "busy machine", "slow"],
)
def test_all_threads_are_taken_where_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, one: float, four: float, chosen: int
) -> None:
    monkeypatch.setattr(threads_module, "SMALL_STEP", 0)
    clock = Clock({1: one, 4: four})
    assert choose_threads(CONFIG, SHAPE, CPU, clock=clock) == chosen
    # Trying is over soon where it takes long.
    assert clock.now < 5 * (0.2 + one + four)
    assert torch.get_num_threads() == 4


def test_small_steps_are_not_tried() -> None:
    assert choose_threads(CONFIG, SHAPE, CPU, clock=iter(()).__next__) == 1


def test_threads_are_no_matter_on_other_devices() -> None:
    assert choose_threads(CONFIG, SHAPE, torch.device("cuda"), clock=iter(()).__next__) is None


def test_trying_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "SMALL_STEP", 0)
    before = torch.get_rng_state()
    choose_threads(replace(CONFIG, dropout=0.2), SHAPE, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_are_as_before_outside() -> None:
    with pytest.raises(KeyboardInterrupt), training_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 4
    with training_threads(None):
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("asked", "used"), [(None, 1), (3, 3)])
def test_a_head_is_trained_with_the_threads_that_its_run_records(
    cache: FeatureCache, tmp_path: Path, asked: int | None, used: int
) -> None:
    seen: set[int] = set()

    def look(record: EpochRecord) -> None:
        seen.add(torch.get_num_threads())

    run = fit_head(cache, CONFIG, runs_dir=tmp_path / "runs", threads=asked, progress=look)
    assert seen == {used} and run.training.threads == used
    assert Run.load(run.folder).training.threads == used
    assert torch.get_num_threads() == 4


def test_a_training_goes_on_with_the_threads_it_had(cache: FeatureCache, tmp_path: Path) -> None:
    def stop(record: EpochRecord) -> None:
        raise KeyboardInterrupt

    fit_head(cache, CONFIG, runs_dir=tmp_path / "runs", threads=3, progress=stop, checkpoint_every_s=0.0)
    torch.set_num_threads(2)
    assert resume_head(runs_dir=tmp_path / "runs").training.threads == 3


@pytest.mark.parametrize(("head", "threads"), [("linear", 0), ("ridge", 2)])
def test_threads_that_cannot_be_are_refused(cache: FeatureCache, tmp_path: Path, head: str, threads: int) -> None:
    with pytest.raises(InvalidOption, match="--threads"):
        fit_head(cache, HeadConfig(head=head), runs_dir=tmp_path / "runs", threads=threads)
