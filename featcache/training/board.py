"""TensorBoard: the same numbers as history.csv, where one can watch them while a head is trained."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType

from featcache.errors import MissingExtra
from featcache.heads.records import EpochRecord, Progress
from featcache.training.checkpoints import Checkpoint, Unfinished

_EVENTS = "events.out.tfevents.*"


class Board:
    """Writes a point per epoch and curve into the folder of an unfinished training, whose run then takes the file.

    `resumed`: the checkpoint a training goes on from, whose epochs are written again. Use it as a context manager.
    Raises MissingExtra where TensorBoard is not installed.
    """

    def __init__(self, unfinished: Unfinished, resumed: Checkpoint | None = None) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise MissingExtra("--tensorboard", package="tensorboard", extra="tensorboard") from error
        unfinished.claim()
        self._folder: Path = unfinished.folder
        for old in self._folder.glob(_EVENTS):
            old.unlink()
        self._writer = SummaryWriter(str(self._folder))
        for record in () if resumed is None else resumed.history:
            self.add(record)

    def add(self, epoch: EpochRecord) -> None:
        """Another epoch, on the disk when this returns."""
        points = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            "accuracy/val": epoch.val_score,
            "lr": epoch.lr,
        }
        for name, value in points.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()

    def joined(self, progress: Progress | None) -> Progress:
        """A progress callback that adds every epoch here, and then tells `progress`."""

        def both(epoch: EpochRecord) -> None:
            self.add(epoch)
            if progress is not None:
                progress(epoch)

        return both

    def files(self) -> dict[str, bytes]:
        """The event files by name, as a run keeps them. Nothing can be added after that."""
        self._writer.close()
        return {path.name: path.read_bytes() for path in self._folder.glob(_EVENTS)}

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
