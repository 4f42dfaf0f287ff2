"""Train one head with Lightning's Trainer; the result is the same head that featcache's own engine trains."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import nn

from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Progress
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batches, Epochs
from featcache.rows.target import HeadTarget
from featcache.training.finished import final_head
from featcache.training.fit_result import FitResult
from featcache.training.fitting import fit_result_of, source_of
from featcache.training.lightning import HeadModule, InOrder, NextEpoch
from featcache.training.threads import training_threads
from featcache.training.trial import Trial


def fit_by_trainer(
    train: Batches,
    val: Batches,
    target: HeadTarget,
    config: HeadConfig,
    *,
    trainer: pl.Trainer | None = None,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
    threads: int | None = None,
) -> FitResult:
    """Train a head with Lightning's Trainer, and return the head of its best epoch. There are no checkpoints.

    Args:
        train: The train batches.
        val: The val batches, which choose the epoch.
        target: The target.
        config: The head's options.
        trainer: Your own Trainer, with its epochs, stopping and callbacks; None for one with the epochs and the
            patience of the options.
        progress: Called with the record of every epoch.
        interruption: Handles Ctrl-C.
        threads: Torch's threads on the CPU; None for torch's current number.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before the first epoch has ended, and after a second one.
        HeadError: The loss became infinite or NaN.
    """
    began = time.perf_counter()
    interruption = interruption or Interruption()
    source = source_of(train, config, target)
    with training_threads(threads):
        trial = train_module(
            HeadModule.of_rows(config, source, target),
            train,
            val,
            trainer or trainer_for(config, train.device),
            progress=progress,
            interruption=interruption,
        )
    trial.threads = threads
    head = final_head(trial, source.scaling, target, train.feature_dim).to(train.device)
    seconds = time.perf_counter() - began
    return fit_result_of(trial, head, val, target, source.scaling, seconds=seconds)


def train_module(
    module: HeadModule,
    train: Epochs,
    val: Epochs,
    trainer: pl.Trainer,
    *,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
) -> Trial:
    """Train a module, and return its history and its best epoch. Raises what `fit_by_trainer` raises."""
    interruption = interruption or Interruption()
    _require_val(trainer)
    config = module.config
    trial = Trial(config, metric=module.target.metric)
    callbacks: list[Callback] = vars(trainer)["callbacks"]
    keeper = _Keeper(trial, progress, interruption)
    callbacks.insert(0, keeper)
    with interruption, quiet_lightning():
        try:
            trainer.fit(module, NextEpoch(train, lambda: trainer.current_epoch), InOrder(val))
        except SystemExit as stop:
            # The Trainer turns a KeyboardInterrupt into SystemExit.
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            interruption.requested = True
        finally:
            # The user's Trainer may be used for another head.
            callbacks.remove(keeper)
    trial.require_finite()
    if not trial.history or interruption.aborted:
        raise KeyboardInterrupt
    trial.over = not interruption.requested
    return trial


def _require_val(trainer: pl.Trainer) -> None:
    """Raise InvalidOption if a Trainer does not run val after every epoch, which the choice of the best epoch needs."""
    limit = vars(trainer)["limit_val_batches"]
    if trainer.check_val_every_n_epoch != 1 or limit == 0:
        raise InvalidOption(
            "expected a Trainer that runs val after every epoch, got "
            f"check_val_every_n_epoch={trainer.check_val_every_n_epoch}, limit_val_batches={limit}",
            hint="val chooses the best epoch: leave both at their defaults",
        )


class _Keeper(Callback):
    """Records the history and the best epoch of a module in a trial, and stops the Trainer after a Ctrl-C."""

    def __init__(self, trial: Trial, progress: Progress | None, interruption: Interruption) -> None:
        self._trial, self._progress, self._interruption = trial, progress, interruption
        self._began, self._rate = 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At the end of the epoch, the scheduler has already set the next rate.
        self._began, self._rate = time.perf_counter(), float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._interruption.requested:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._interruption.requested:
            # The last epoch is incomplete.
            return
        metrics, config, past = trainer.callback_metrics, self._trial.config, len(self._trial.history)
        record = EpochRecord(
            epoch=past + 1,
            max_epochs=max(config.max_epochs, past + 1),
            train_loss=float(metrics["train_loss"]),
            val_loss=float(metrics["val_loss"]),
            val_score=float(metrics[f"val_{self._trial.metric}"]),
            seconds=time.perf_counter() - self._began,
            rate=self._rate,
        )
        head = pl_module.head
        assert isinstance(head, nn.Module)
        self._trial.add_epoch(
            record, lambda: {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
        )
        if self._trial.trouble is not None:
            trainer.should_stop = True
            return
        self._interruption.has_result = True
        if self._progress is not None:
            self._progress(record)


def trainer_for(config: HeadConfig, device: torch.device, *callbacks: Callback) -> pl.Trainer:
    """A Trainer with the epochs and the patience of a head's options, which writes and prints nothing."""
    stopping = EarlyStopping("val_loss", min_delta=config.min_delta, patience=config.patience)
    with quiet_lightning():
        return pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_epochs=config.max_epochs,
            callbacks=[*callbacks, stopping],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # Without this, Lightning would join a surrounding SLURM job and wait for other ranks.
            plugins=[LightningEnvironment()],
        )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's lines about the hardware, which it prints for every head, and four of its warnings."""
    # An unused GPU is the user's choice, the deprecation concerns Lightning and torch only, batches in memory need no
    # worker processes, and a last batch that is too short for batch norm has no loss.
    announcer = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = announcer.level
    announcer.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                r".*\bavailable but not used",
                r".*LeafSpec",
                r".*does not have many workers",
                r".*returned `None`",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        announcer.setLevel(level)
