"""What a training has to leave behind, so that it can go on after a kill as if nothing had happened.

    <runs_dir>/<name of the run>.unfinished/
        checkpoint.safetensors      the state after a finished epoch, published whole or not at all

The tensors are those of the head, of its best epoch, of the optimiser, of the random generators and of the
standardisation; everything else stands as JSON in the file's metadata. Nothing in it can execute code. A run that
Ctrl-C has ended keeps the file in its own folder.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from featcache.cache.locks import locked
from featcache.errors import CacheBusy, CacheUnwritable, HeadError
from featcache.files import file_aside
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord
from featcache.training.checkpoint_file import (
    CHECKPOINT_FILE,
    UNFINISHED_SUFFIX,
    checkpoint_metadata,
    read_checkpoint_metadata,
)
from featcache.training.preparation import Prepared

if TYPE_CHECKING:
    from torch import Tensor

EVERY_S = 5.0
# Writing may take this share of the time that training takes.
_SHARE = 0.02
_ROWS_AT_ONCE = 1 << 20

# Gives how far a training is, as JSON values, and its tensors.
State = Callable[[], "tuple[Mapping[str, Any], Mapping[str, Tensor]]"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a training after a finished epoch.

    `about`: what is trained on what (runs/resuming.py); `progress`: how far it is, as JSON values; `tensors`: by
    name, on the CPU.
    """

    about: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def publish(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; no copy of the tensors is made. Raises CacheUnwritable."""
        import safetensors.torch

        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        with file_aside(path) as building:
            try:
                safetensors.torch.save_file(tensors, building, checkpoint_metadata(self.about, self.progress))
            except SafetensorError as error:
                raise CacheUnwritable(f"{path} could not be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read such a file. Raises HeadError if there is none, or if it is another file."""
        import safetensors.torch

        about, progress = read_checkpoint_metadata(path)
        try:
            return cls(about=about, progress=progress, tensors=safetensors.torch.load_file(path))
        except (OSError, SafetensorError) as error:
            raise HeadError(f"{path} is no checkpoint of a training: {error}", hint="train again") from error

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        """The epochs that were finished."""
        return tuple(EpochRecord(**record) for trial in self.progress["trials"] for record in trial["history"])

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name.`, without that."""
        return {
            key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")
        }


@dataclass(kw_only=True)
class Unfinished:
    """The folder of a training that has not ended, made when there is something to put there.

    As a context: the folder goes when the block ends well. After an error, Ctrl-C or a full disk, the last checkpoint
    stays.

    `about`: what every checkpoint says of what is trained. `every_s`: seconds between two checkpoints, at least, and
    more where writing one takes long; 0 for one after every epoch. `clock` gives seconds.
    """

    folder: Path
    about: Mapping[str, Any]
    every_s: float = EVERY_S
    clock: Callable[[], float] = time.monotonic
    _held: ExitStack = field(default_factory=ExitStack)
    _claimed: bool = False
    _due: float = 0.0

    def __post_init__(self) -> None:
        self._due = self.clock() + self.every_s

    @classmethod
    def of(cls, runs_dir: Path, name: str, *, about: Mapping[str, Any], every_s: float = EVERY_S) -> Unfinished:
        """That of the run that is going to be called `name`."""
        return cls(folder=runs_dir / f"{name}{UNFINISHED_SUFFIX}", about=about, every_s=every_s)

    @property
    def name(self) -> str:
        """The name of the run that comes of it."""
        return self.folder.name.removesuffix(UNFINISHED_SUFFIX)

    @property
    def checkpoint(self) -> bytes | None:
        """The last checkpoint, if one was written."""
        path = self.folder / CHECKPOINT_FILE
        return path.read_bytes() if path.exists() else None

    def claim(self) -> None:
        """Make the folder, and keep other processes from going on with it. Raises HeadError where one does already."""
        if self._claimed:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self.folder, "training", wait=False))
            self._claimed = True
        except CacheBusy as error:
            raise HeadError(f"{self.name} is in training: {error.message}", hint="wait until it is done") from error
        except OSError as error:
            raise _unwritable(str(error)) from error
        except CacheUnwritable as error:
            raise _unwritable(error.message) from error

    def epoch_ended(self, state: State) -> None:
        """Write a checkpoint, if the last one is old enough. Raises CacheUnwritable."""
        began = self.clock()
        if began < self._due:
            return
        self.claim()
        progress, tensors = state()
        try:
            Checkpoint(about=self.about, progress=progress, tensors=tensors).publish(self.folder / CHECKPOINT_FILE)
        except CacheUnwritable as error:
            raise _unwritable(error.message) from error
        now = self.clock()
        self._due = now + (max(self.every_s, (now - began) / _SHARE) if self.every_s else 0)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._held.close()
        if self._claimed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()
        if error is None or not (self.folder / CHECKPOINT_FILE).exists():
            self.discard()


def about_training(
    prepared: Prepared, config: HeadConfig, *, created: datetime, threads: int | None, logger: str | None
) -> dict[str, Any]:
    """What is trained on what: all that has to be the same for a training to go on, and its run's date."""
    return {
        "created": created.isoformat(),
        "options": config.to_json(),
        "caches": [str(column.cache.path) for column in prepared.columns],
        "rows": rows_digest(prepared),
        "device": str(prepared.place),
        "threads": threads,
        "logger": logger,
    }


def rows_digest(*prepared: Prepared) -> str:
    """SHA-256 over the targets and the checksums of all rows that a training reads: other rows, another digest."""
    seen = hashlib.sha256()
    for part, rows in (one for some in prepared for one in sorted(some.rows.items())):
        seen.update(part.encode())
        seen.update(np.ascontiguousarray(rows.chosen.targets).data)
        for column, view in itertools.product(rows.columns, range(rows.views)):
            array = column.of_view(view)
            seen.update(f"{array.name} {array.dtype} {array.scale} {array.offset}".encode())
            # A piece at a time: of ten million rows a copy is 80 MB.
            for start in range(0, len(column.rows), _ROWS_AT_ONCE):
                some = column.rows[start : start + _ROWS_AT_ONCE]
                seen.update(array.split.checksums(array.name, some, view).data)
    return seen.hexdigest()


def _unwritable(message: str) -> CacheUnwritable:
    return CacheUnwritable(message, hint="free some space, or another --runs-dir")
