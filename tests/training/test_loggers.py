"""`--logger`: the numbers of history.csv, logged by one of Lightning's loggers."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from head_caches import blobs, write_cache

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption, MissingExtra
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.runs.fit import fit_head, train_head
from featcache.runs.resuming import resume_head
from featcache.runs.run import Run

LOGGERS = ("csv", "tensorboard")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return write_cache(tmp_path_factory.mktemp("logged"), {"train": blobs(120)})


def points(run: Run, logger: str) -> list[tuple[int, Any]]:
    """(epoch, val loss) as read from the logger's files."""
    if logger == "csv":
        with (run.folder / "metrics.csv").open(newline="") as file:
            return [(int(row["step"]), float(row["loss/val"])) for row in csv.DictReader(file)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars("loss/val")]


def assert_whole(run: Run, logger: str) -> None:
    expected = [(epoch.epoch, pytest.approx(epoch.val_loss)) for epoch in run.history()]
    assert points(run, logger) == expected


@pytest.mark.parametrize("trainer", ["featcache", "lightning"])
@pytest.mark.parametrize("logger", LOGGERS)
def test_every_epoch_is_written_into_the_run(cache: FeatureCache, tmp_path: Path, logger: Any, trainer: Any) -> None:
    run = train_head(cache, "linear", logger=logger, trainer=trainer, max_epochs=3, runs_dir=tmp_path)
    assert_whole(run, logger)
    assert list(tmp_path.iterdir()) == [run.folder]


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_resumed_training_has_every_epoch_once(cache: FeatureCache, tmp_path: Path, logger: Any) -> None:
    def kill(epoch: EpochRecord) -> None:
        if epoch.epoch == 3:
            raise RuntimeError("killed")

    config = HeadConfig(head="linear", max_epochs=5)
    with suppress(RuntimeError):
        fit_head(cache, config, runs_dir=tmp_path, progress=kill, logger=logger, checkpoint_every_s=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = resume_head(runs_dir=tmp_path)
    assert run.training.epochs == 5
    assert_whole(run, logger)


@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_named(cache: FeatureCache, tmp_path: Path, logger: Any) -> None:
    if importlib.util.find_spec(logger) is not None:
        pytest.skip(f"{logger} is installed")
    with pytest.raises(MissingExtra, match=logger) as caught:
        train_head(cache, "linear", logger=logger, max_epochs=1, runs_dir=tmp_path)
    assert caught.value.hint == f"pip install 'featcache[{logger}]'"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_refused(cache: FeatureCache, tmp_path: Path) -> None:
    options: Any = {"logger": "tensorbord"}
    with pytest.raises(InvalidOption, match="--logger tensorboard, csv, mlflow or wandb"):
        train_head(cache, "linear", runs_dir=tmp_path, **options)
