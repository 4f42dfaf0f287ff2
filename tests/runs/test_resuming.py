"""A resumed training gives the same head as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_caches import Blobs, blobs, write_cache
from killed_training import killed_after
from torch import Tensor, nn

from featcache import files
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheUnwritable, HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome
from featcache.heads.records import EpochRecord
from featcache.rows.batches import Batches
from featcache.rows.views import TRAIN_VIEWS, TrainViews
from featcache.runs.files import publish_folder
from featcache.runs.fit import fit_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run
from featcache.training.checkpoint_file import CHECKPOINT_FILE
from featcache.training.checkpoints import Checkpoint, Unfinished
from featcache.training.evaluation import evaluate

CONFIG = HeadConfig(head="mlp:16", lr=0.003, max_epochs=12, patience=12, dropout=0.3, head_batch_size=32)


UNFINISHED = f"*.unfinished/{CHECKPOINT_FILE}"


class CutOffError(Exception):
    """Simulates a power cut: nothing after it is executed."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    splits = {"train": blobs(120, distance=0.4), "test": blobs(60, seed=1, distance=0.4)}
    return write_cache(tmp_path_factory.mktemp("cut"), splits)


@pytest.fixture(autouse=True)
def server_finds_what_it_preloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def cut_off_after(epoch: int, raised: type[BaseException] = CutOffError) -> Callable[[EpochRecord], None]:
    def progress(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise raised

    return progress


def cut_off(cache: FeatureCache, config: HeadConfig, runs_dir: Path, epoch: int, **options: float) -> Path:
    """Run a training that ends suddenly after an epoch; returns the folder that it leaves."""
    with pytest.raises(CutOffError):
        fit_head(cache, config, runs_dir=runs_dir, progress=cut_off_after(epoch), checkpoint_every_s=0.0)
    (path,) = runs_dir.glob(UNFINISHED)
    return path.parent


def numbers(run: Run) -> tuple[object, ...]:
    """Everything that a training computes, without times."""
    epochs = [replace(epoch, seconds=0.0) for epoch in run.history()]
    done = run.training
    return run.weights_sha256, epochs, done.best_epoch, done.val, done.last, done.test, done.images


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "schedule": "cosine", "l1": 1e-4},
        {"optimizer": "sgd", "momentum": 0.0, "standardize": False},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "plateau", "patience": 5, "min_delta": 0.1},
        {"label_smoothing": 0.1, "class_weights": "balanced", "patience": 3, "min_delta": 0.05},
        {"batch_norm": True, "mixup": 0.3, "noise": 0.2},
    ],
    ids=["adam", "cosine", "plain sgd", "plateau", "patience", "norm, mixup, noise"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
def test_resumed_training_ends_bit_for_bit_as_one_that_never_stopped(
    cache: FeatureCache, tmp_path: Path, changes: dict[str, object], streamed: bool
) -> None:
    config = HeadConfig.from_json({**CONFIG.to_json(), **changes})
    whole = fit_head(cache, config, runs_dir=tmp_path / "whole")
    assert whole.training.epochs > 3
    folder = cut_off(cache, config, tmp_path, 3)
    resumed = resume_head(folder, runs_dir=tmp_path, resident_bytes=0 if streamed else None)
    assert numbers(resumed) == numbers(whole)
    assert resumed.folder.name == folder.name.removesuffix(".unfinished")
    assert not resumed.training.interrupted
    assert sorted(tmp_path.iterdir()) == sorted([resumed.folder, tmp_path / "whole"])
    assert Run.load(resumed.folder) == resumed


@pytest.mark.parametrize("streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("train_views", TRAIN_VIEWS)
def test_resumed_training_sees_the_views_it_would_have_seen(
    tmp_path: Path, train_views: TrainViews, streamed: bool
) -> None:
    cache = write_cache(tmp_path, {"train": blobs(120, distance=0.4, views=3)})
    config = replace(CONFIG, train_views=train_views)
    whole = fit_head(cache, config, runs_dir=tmp_path / "whole")
    folder = cut_off(cache, config, tmp_path / "runs", 3)
    resumed = resume_head(folder, runs_dir=tmp_path / "runs", resident_bytes=0 if streamed else None)
    assert numbers(resumed) == numbers(whole)


def test_a_training_can_be_killed_and_resumed_repeatedly(cache: FeatureCache, tmp_path: Path) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")
    assert killed_after(3, CONFIG, tmp_path / "runs", cache.path)
    assert killed_after(7, CONFIG, tmp_path / "runs")
    run = resume_head(runs_dir=tmp_path / "runs")
    assert numbers(run) == numbers(whole)


def test_training_killed_after_its_last_epoch_is_only_written(cache: FeatureCache, tmp_path: Path) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")
    cut_off(cache, CONFIG, tmp_path, 12)
    trained: list[EpochRecord] = []
    run = resume_head(runs_dir=tmp_path, progress=trained.append)
    assert numbers(run) == numbers(whole) and trained == []


def test_callers_random_state_is_untouched_by_resuming(cache: FeatureCache, tmp_path: Path) -> None:
    cut_off(cache, CONFIG, tmp_path, 3)
    before = torch.get_rng_state()
    resume_head(runs_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_on_two_caches_is_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    splits = {"train": blobs(120, dim=4, seed=5), "test": blobs(60, dim=4, seed=6)}
    other = write_cache(tmp_path, splits, backbone="other")
    whole = fit_head(cache, CONFIG, beside=[other], runs_dir=tmp_path / "whole")
    with pytest.raises(CutOffError):
        fit_head(cache, CONFIG, beside=[other], runs_dir=tmp_path, progress=cut_off_after(2), checkpoint_every_s=0.0)
    assert numbers(resume_head(runs_dir=tmp_path)) == numbers(whole)


# --- what is kept, and when -------------------------------------------------------------------------------


def test_short_trainings_leave_no_checkpoints(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(CutOffError):
        fit_head(cache, CONFIG, runs_dir=tmp_path, progress=cut_off_after(3))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_seldom_enough_to_cost_next_to_nothing(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 5.0, 6.0, 10.0, 11.5, 56.0, 60.0, 60.0])
    place = Unfinished(folder=tmp_path / "run.unfinished", about={}, clock=lambda: next(times))
    written: list[int] = []

    def state() -> tuple[dict[str, object], dict[str, torch.Tensor]]:
        written.append(len(written))
        return {"epoch": len(written)}, {"one": torch.ones(1)}

    # Begun at 0; due at 5; writing took one second, so the next is due 50 seconds later.
    counts = []
    for _ in range(5):
        place.epoch_ended(state)
        counts.append(len(written))
    assert counts == [0, 1, 1, 1, 2]
    assert Checkpoint.load(place.folder / CHECKPOINT_FILE).progress == {"epoch": 2}


def test_checkpoint_is_read_without_executing_anything(cache: FeatureCache, tmp_path: Path) -> None:
    folder = cut_off(cache, CONFIG, tmp_path, 2)
    content = (folder / CHECKPOINT_FILE).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["featcache"])
    assert metadata["about"]["options"]["head"] == "mlp:16"
    assert [len(trial["history"]) for trial in metadata["progress"]["trials"]] == [2]
    assert {name.split(".")[0] for name in header} == {"__metadata__", "stack", "best"}


def test_full_disk_leaves_the_checkpoint_before(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")

    def fill_disk(record: EpochRecord) -> None:
        if record.epoch == 4:
            monkeypatch.setattr(files.system, "replace", full)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CacheUnwritable, match="no space") as raised:
        fit_head(cache, CONFIG, runs_dir=tmp_path, progress=fill_disk, checkpoint_every_s=0.0)
    assert "--runs-dir" in str(raised.value.hint)
    monkeypatch.undo()
    assert numbers(resume_head(runs_dir=tmp_path)) == numbers(whole)


def test_run_that_cannot_be_written_leaves_its_checkpoint(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featcache.runs.run.publish_folder", full)
    with pytest.raises(HeadError, match="No space left"):
        fit_head(cache, CONFIG, runs_dir=tmp_path, checkpoint_every_s=0.0)
    monkeypatch.undo()
    assert resume_head(runs_dir=tmp_path).training.epochs == 12


def test_diverged_training_leaves_nothing(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match="diverged"):
        fit_head(cache, replace(CONFIG, lr=1e30), runs_dir=tmp_path, checkpoint_every_s=0.0)
    assert list(tmp_path.iterdir()) == []


# --- Ctrl-C -----------------------------------------------------------------------------------------------


def test_interrupted_run_can_be_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")
    progress = cut_off_after(5, KeyboardInterrupt)
    stopped = fit_head(cache, CONFIG, runs_dir=tmp_path, progress=progress, checkpoint_every_s=0.0)
    assert stopped.training.interrupted and stopped.training.epochs == 5
    assert (stopped.folder / CHECKPOINT_FILE).exists()
    run = resume_head(stopped.folder.name[:20], runs_dir=tmp_path)
    assert numbers(run) == numbers(whole)
    assert run.folder != stopped.folder and Run.load(stopped.folder) == stopped
    assert not (run.folder / CHECKPOINT_FILE).exists()


def test_resumed_training_that_is_interrupted_at_once_has_the_best_so_far(cache: FeatureCache, tmp_path: Path) -> None:
    cut_off(cache, CONFIG, tmp_path, 4)

    reports: list[str] = []

    def interrupt(*_: object) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return torch.zeros(1)

    four = fit_head(cache, replace(CONFIG, max_epochs=4, patience=12), runs_dir=tmp_path / "four")
    with pytest.MonkeyPatch.context() as patch:
        # Before any new epoch is done.
        patch.setattr("featcache.training.stack.PerceptronStack.step", interrupt)
        run = resume_head(runs_dir=tmp_path, report=reports.append)
    assert reports[:1] == ["resuming after epoch 4 of at most 12"]
    assert run.training.interrupted and run.training.epochs == 4
    assert run.weights_sha256 == four.weights_sha256


def test_ctrl_c_while_the_best_is_tested_keeps_it(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")

    def evaluate_interrupted(head: nn.Module, batches: Batches, *rest: Any, **more: Any) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        return evaluate(head, batches, *rest, **more)

    monkeypatch.setattr("featcache.training.evaluation.evaluate", evaluate_interrupted)
    run = fit_head(cache, CONFIG, runs_dir=tmp_path)
    assert run.training.interrupted
    assert numbers(run) == numbers(whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_run_is_written_leaves_it_whole(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_interrupted(folder: Path, files: dict[str, bytes]) -> None:
        signal.raise_signal(signal.SIGINT)
        publish_folder(folder, files)

    monkeypatch.setattr("featcache.runs.run.publish_folder", publish_interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_head(cache, CONFIG, runs_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert Run.load(folder).training.epochs == 12


def test_second_ctrl_c_ends_at_once_and_leaves_the_checkpoint(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_head(cache, CONFIG, runs_dir=tmp_path / "whole")

    def interrupt(record: EpochRecord) -> None:
        if record.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    def impatient(head: nn.Module, batches: Batches, *rest: Any, **more: Any) -> Outcome:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it should have ended")

    monkeypatch.setattr("featcache.training.evaluation.evaluate", impatient)
    with pytest.raises(KeyboardInterrupt):
        fit_head(cache, CONFIG, runs_dir=tmp_path, progress=interrupt, checkpoint_every_s=0.0)
    monkeypatch.undo()
    assert [path.parent.name[-11:] for path in tmp_path.glob(UNFINISHED)] == [".unfinished"]
    assert numbers(resume_head(runs_dir=tmp_path)) == numbers(whole)


def test_second_ctrl_c_within_the_training_ends_it_at_once(cache: FeatureCache, tmp_path: Path) -> None:
    def twice(record: EpochRecord) -> None:
        if record.epoch == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_head(cache, CONFIG, runs_dir=tmp_path, progress=twice)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", ["ridge", "knn"])
def test_ctrl_c_keeps_the_best_candidate(cache: FeatureCache, tmp_path: Path, head: str) -> None:
    def interrupt(record: EpochRecord) -> None:
        if record.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    run = fit_head(cache, HeadConfig(head=head), runs_dir=tmp_path, progress=interrupt)
    assert run.training.interrupted and run.training.epochs == 3
    assert run.training.test is not None


# --- what cannot be resumed -------------------------------------------------------------------------------


def test_nothing_to_resume_is_an_error(cache: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"no training in .* can be resumed"):
        resume_head(runs_dir=tmp_path)
    run = fit_head(cache, replace(CONFIG, max_epochs=1), runs_dir=tmp_path)
    for name in (run.folder, run.folder.name):
        with pytest.raises(HeadError, match="has no checkpoint: its training is complete"):
            resume_head(name, runs_dir=tmp_path)
    with pytest.raises(HeadError, match="expected one training named nothing"):
        resume_head("nothing", runs_dir=tmp_path)


def test_several_that_begin_alike_are_listed(cache: FeatureCache, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(CutOffError):
            fit_head(cache, CONFIG, runs_dir=tmp_path, progress=cut_off_after(2), checkpoint_every_s=0.0)
    with pytest.raises(HeadError, match="got 2") as raised:
        resume_head("20", runs_dir=tmp_path)
    assert all(path.parent.name in str(raised.value.hint) for path in tmp_path.glob(UNFINISHED))


def test_training_on_changed_rows_is_not_resumed(tmp_path: Path) -> None:
    train = blobs(120, distance=0.4)
    cache = write_cache(tmp_path, {"train": train})
    folder = cut_off(cache, CONFIG, tmp_path / "runs", 2)
    cache.close()
    write_cache(tmp_path, {"train": Blobs(features=np.roll(train.features, 1, axis=0), labels=train.labels)})
    with pytest.raises(HeadError, match="hold other rows or labels"):
        resume_head(folder, runs_dir=tmp_path / "runs")
    assert (folder / CHECKPOINT_FILE).exists()


def test_a_training_in_progress_cannot_be_resumed(cache: FeatureCache, tmp_path: Path) -> None:
    def meanwhile(record: EpochRecord) -> None:
        if record.epoch == 3:
            with pytest.raises(HeadError, match=r"is in training.*process"):
                resume_head(runs_dir=tmp_path)

    assert fit_head(cache, CONFIG, runs_dir=tmp_path, progress=meanwhile, checkpoint_every_s=0.0).training.epochs == 12


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "cut short"])
def test_damaged_checkpoint_is_refused(cache: FeatureCache, tmp_path: Path, content: bytes | None) -> None:
    path = cut_off(cache, CONFIG, tmp_path, 2) / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(HeadError, match="is no checkpoint"):
        resume_head(runs_dir=tmp_path)
