"""Checkpoints of a training, from which it can be resumed with the same result, even after a kill.

    <runs_dir>/<name of the run>.unfinished/
        checkpoint.safetensors      the state after an epoch, written atomically

The tensors are those of the head, of its best epoch, of the optimizer, of the random generators and of the
standardisation; everything else is JSON in the file's metadata. Nothing in it can execute code. A run that Ctrl-C has
ended keeps the file in its own folder.
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

from featcache.cache.locks import lock_cache
from featcache.errors import CacheBusy, CacheUnwritable, HeadError
from featcache.files import atomic_file
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
# Largest share of the training time that writing checkpoints may take.
_SHARE = 0.02
_ROWS_AT_ONCE = 1 << 20

# Returns the progress of a training, as JSON values, and its tensors.
State = Callable[[], "tuple[Mapping[str, Any], Mapping[str, Tensor]]"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch.

    Attributes:
        about: Options, caches and rows of the training (runs/resuming.py), as JSON values.
        progress: The epochs so far, as JSON values.
        tensors: The tensors by name, on the CPU.
    """

    about: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def publish(self, path: Path) -> None:
        """Write a safetensors file atomically, without a copy of the tensors. Raises CacheUnwritable."""
        import safetensors.torch

        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        with atomic_file(path) as building:
            try:
                safetensors.torch.save_file(tensors, building, checkpoint_metadata(self.about, self.progress))
            except SafetensorError as error:
                raise CacheUnwritable(f"{path} could not be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint. Raises HeadError if the file is missing or is no checkpoint."""
        import safetensors.torch

        about, progress = read_checkpoint_metadata(path)
        try:
            return cls(about=about, progress=progress, tensors=safetensors.torch.load_file(path))
        except (OSError, SafetensorError) as error:
            raise HeadError(f"{path} is no checkpoint of a training: {error}", hint="train again") from error

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        """The records of all epochs so far."""
        return tuple(EpochRecord(**record) for trial in self.progress["trials"] for record in trial["history"])

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name.`, by the rest of their names."""
        return {
            key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")
        }


@dataclass(kw_only=True)
class Unfinished:
    """The folder of an unfinished training, which is created for the first checkpoint.

    As a context manager: the folder is removed when the block ends without an error. After an error, Ctrl-C or a full
    disk, the last checkpoint stays.

    Args:
        folder: The folder.
        about: Options, caches and rows of the training, which every checkpoint contains.
        every_s: The least seconds between two checkpoints, and more where writing one takes long; 0 for a checkpoint
            after every epoch.
        clock: Returns the time in seconds.
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
        """The folder for a run that will have this name."""
        return cls(folder=runs_dir / f"{name}{UNFINISHED_SUFFIX}", about=about, every_s=every_s)

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name.removesuffix(UNFINISHED_SUFFIX)

    @property
    def checkpoint(self) -> bytes | None:
        """The bytes of the last checkpoint; None if none was written."""
        path = self.folder / CHECKPOINT_FILE
        return path.read_bytes() if path.exists() else None

    def claim(self) -> None:
        """Create and lock the folder, so that no other process resumes it. Raises HeadError if another one has it."""
        if self._claimed:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(lock_cache(self.folder, "training", wait=False))
            self._claimed = True
        except CacheBusy as error:
            raise HeadError(f"{self.name} is in training: {error.message}", hint="wait until it is done") from error
        except OSError as error:
            raise _unwritable(str(error)) from error
        except CacheUnwritable as error:
            raise _unwritable(error.message) from error

    def epoch_ended(self, state: State) -> None:
        """Write a checkpoint if the last one is older than `every_s`. Raises CacheUnwritable."""
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
        """Remove the folder."""
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
    """Everything that must be equal for a training to be resumed, and the date of its run, as JSON values."""
    return {
        "created": created.isoformat(),
        "options": config.to_json(),
        "caches": [str(column.cache.path) for column in prepared.columns],
        "rows": rows_digest(prepared),
        "device": str(prepared.device_name),
        "threads": threads,
        "logger": logger,
    }


def rows_digest(*prepared: Prepared) -> str:
    """SHA-256 over the targets and the checksums of all rows that a training reads."""
    seen = hashlib.sha256()
    for part, rows in (one for some in prepared for one in sorted(some.rows.items())):
        seen.update(part.encode())
        seen.update(np.ascontiguousarray(rows.chosen.targets).data)
        for column, view in itertools.product(rows.columns, range(rows.views)):
            array = column.of_view(view)
            seen.update(f"{array.name} {array.dtype} {array.scale} {array.offset}".encode())
            # In pieces, because the row numbers of ten million rows are 80 MB.
            for start in range(0, len(column.rows), _ROWS_AT_ONCE):
                some = column.rows[start : start + _ROWS_AT_ONCE]
                seen.update(array.split.checksums(array.name, some, view).data)
    return seen.hexdigest()


def _unwritable(message: str) -> CacheUnwritable:
    return CacheUnwritable(message, hint="free some space, or choose another --runs-dir")
