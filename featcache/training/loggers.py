"""Lightning's loggers by name: the same numbers as history.csv, where they can be watched while a head is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from featcache.errors import MissingExtra
from featcache.heads.records import EpochRecord, Progress
from featcache.training.checkpoint_file import CHECKPOINT_FILE
from featcache.training.checkpoints import Unfinished
from featcache.training.options import LoggerName

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

# Those whose files lie in the run's folder; the others have places of their own beside the runs.
_INSIDE = ("tensorboard", "csv")


class RunLogger:
    """Writes a point an epoch and curve. Use it as a context manager.

    Args:
        name: One of the loggers that `--logger` takes (training/options.py).
        unfinished: The folder of the training, whose run then takes the files.
        metric: What an epoch's score is.
        past: Epochs that were finished before, by a training that goes on: they are written again.

    Raises:
        MissingExtra: The package is not installed.
    """

    def __init__(
        self, name: LoggerName, unfinished: Unfinished, *, metric: str, past: Sequence[EpochRecord] = ()
    ) -> None:
        self._name, self._metric, self._folder = name, metric, unfinished.folder
        unfinished.claim()
        for old in self._own_files():
            old.unlink()
        self.logger = _open(name, unfinished)
        self._open = True
        for record in past:
            self.add(record)

    def add(self, epoch: EpochRecord) -> None:
        """Another epoch, on the disk when this returns where the logger writes files."""
        points = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            f"{self._metric}/val": epoch.val_score,
            "rate": epoch.rate,
        }
        self.logger.log_metrics({name: value for name, value in points.items() if math.isfinite(value)}, epoch.epoch)
        self.logger.save()

    def joined(self, progress: Progress | None) -> Progress:
        """A progress callback that adds every epoch here, and then calls `progress`."""

        def both(epoch: EpochRecord) -> None:
            self.add(epoch)
            if progress is not None:
                progress(epoch)

        return both

    def files(self) -> dict[str, bytes]:
        """What the logger has written into the folder, by name, as a run keeps it. Nothing can be added after that."""
        self._close("success")
        return {path.name: path.read_bytes() for path in self._own_files()}

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close("success" if error is None else "failed")

    def _own_files(self) -> list[Path]:
        if self._name not in _INSIDE:
            return []
        return sorted(path for path in self._folder.iterdir() if path.is_file() and path.name != CHECKPOINT_FILE)

    def _close(self, status: str) -> None:
        if not self._open:
            return
        self._open = False
        self.logger.finalize(status)
        if self._name == "wandb":
            # Else the next training in this process would be written into the same run.
            getattr(self.logger, "experiment").finish()  # noqa: B009 - not every logger has one


def _open(name: LoggerName, unfinished: Unfinished) -> Logger:
    try:
        return _MAKERS[name](unfinished)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"--logger {name}", package=name, extra=name) from error


def _tensorboard(unfinished: Unfinished) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(unfinished.folder, name="", version="")


def _csv(unfinished: Unfinished) -> Logger:
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(unfinished.folder, name="", version="")
    with warnings.catch_warnings():
        # It would delete its own older file, and that is gone already; what else lies there is ours, and stays.
        warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty")
        _ = logger.experiment
    return logger


def _mlflow(unfinished: Unfinished) -> Logger:
    from pytorch_lightning.loggers import MLFlowLogger

    return MLFlowLogger("featcache", run_name=unfinished.name, save_dir=str(unfinished.folder.parent / "mlruns"))


def _wandb(unfinished: Unfinished) -> Logger:
    from pytorch_lightning.loggers import WandbLogger

    return WandbLogger(name=unfinished.name, project="featcache", save_dir=str(unfinished.folder.parent))


_MAKERS: Mapping[LoggerName, Callable[[Unfinished], Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
