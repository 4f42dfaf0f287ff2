"""Log every epoch with one of Lightning's loggers, to watch a training. The same numbers are in history.csv."""

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

# Loggers whose files are in the run's folder; the others have their own places next to the runs.
_INSIDE = ("tensorboard", "csv")


class RunLogger:
    """Writes one point per epoch and curve. Use it as a context manager.

    Args:
        name: One of the loggers that `--logger` takes (training/options.py).
        unfinished: The folder of the training; the run gets the files from it.
        metric: The metric of an epoch's score.
        past: Earlier epochs of a resumed training, which are logged again.

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
        """Log an epoch; a logger with files has written it to disk when this returns."""
        points = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            f"{self._metric}/val": epoch.val_score,
            "rate": epoch.rate,
        }
        self.logger.log_metrics({name: value for name, value in points.items() if math.isfinite(value)}, epoch.epoch)
        self.logger.save()

    def wrap_progress(self, progress: Progress | None) -> Progress:
        """A progress callback that logs every epoch, and then calls `progress`."""

        def both(epoch: EpochRecord) -> None:
            self.add(epoch)
            if progress is not None:
                progress(epoch)

        return both

    def files(self) -> dict[str, bytes]:
        """Close the logger, and return the files it has written into the folder, by name."""
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
            # Otherwise the next training in this process would log into the same run.
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
        # The warning is about deleting older files of this logger, which are already gone; our checkpoint stays.
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
