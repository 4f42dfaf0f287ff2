"""One head is trained by Lightning's Trainer, step by step, to the head that featcache's own engine gives."""

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
from featcache.heads.standardisation import standardising_notes
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Epochs
from featcache.rows.notes import Report, tell
from featcache.training.finished import finished_head
from featcache.training.fitted import Fitted
from featcache.training.fitting import fitted_trial, source_of
from featcache.training.lightning import HeadModule, InOrder, NextEpoch
from featcache.training.preparation import Prepared, open_prepared
from featcache.training.threads import training_threads
from featcache.training.trial import Trial


def fit_by_trainer(
    prepared: Prepared,
    config: HeadConfig,
    *,
    trainer: pl.Trainer | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    resident_bytes: int | None = None,
    interruption: Interruption | None = None,
    threads: int | None = None,
) -> Fitted:
    """Train a head by Lightning's Trainer, step by step, and keep its best epoch. There are no checkpoints.

    Args:
        prepared: The rows.
        config: Its options.
        trainer: One's own, whose epochs, stopping and callbacks apply; None for one with the epochs and the patience of
            the options.
        progress: Called with every epoch.
        report: Called with a sentence about whatever was left out.
        resident_bytes: The most that features may take on the device before they are streamed.
        interruption: How Ctrl-C arrives.
        threads: Torch's, on the CPU; None for as many as torch has.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before the first epoch was done, and after a second one.
        HeadError: The loss stops being finite.
    """
    began = time.perf_counter()
    interruption = interruption or Interruption()
    train, val = open_prepared(prepared, config, report=report, resident_bytes=resident_bytes)
    tell(report, standardising_notes(len(train.rows), config))
    target, source = prepared.target, source_of(train, config, prepared.target)
    with training_threads(threads):
        trial = train_module(
            HeadModule.of_rows(config, source, target),
            train,
            val,
            trainer or _quiet_trainer(config, train.device),
            progress=progress,
            interruption=interruption,
        )
    trial.threads = threads
    head = finished_head(trial, source.scaling, target, train.feature_dim).to(train.device)
    seconds = time.perf_counter() - began
    return fitted_trial(trial, head, val, target, source.scaling, seconds=seconds)


def _quiet_trainer(config: HeadConfig, device: torch.device) -> pl.Trainer:
    with _quiet():
        return trainer_for(config, device)


def train_module(
    module: HeadModule,
    train: Epochs,
    val: Epochs,
    trainer: pl.Trainer,
    *,
    progress: Progress | None = None,
    interruption: Interruption | None = None,
) -> Trial:
    """Train a module and keep its history and its best epoch. Raises what `fit_by_trainer` raises."""
    interruption = interruption or Interruption()
    _require_val(trainer)
    config = module.config
    trial = Trial(config, metric=module.target.metric)
    callbacks: list[Callback] = vars(trainer)["callbacks"]
    keeper = _Keeper(trial, progress, interruption)
    callbacks.insert(0, keeper)
    with interruption, _quiet():
        try:
            trainer.fit(module, NextEpoch(train, lambda: trainer.current_epoch), InOrder(val))
        except SystemExit as stop:
            # A KeyboardInterrupt inside the Trainer comes out as this.
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            interruption.requested = True
        finally:
            # A Trainer of one's own may train another head.
            callbacks.remove(keeper)
    trial.require_sound()
    if not trial.history or interruption.insisted:
        raise KeyboardInterrupt
    trial.over = not interruption.requested
    return trial


def _require_val(trainer: pl.Trainer) -> None:
    """Raises InvalidOption for a Trainer that does not judge val after every epoch: nothing could choose the best."""
    limit = vars(trainer)["limit_val_batches"]
    if trainer.check_val_every_n_epoch != 1 or limit == 0:
        raise InvalidOption(
            "expected a Trainer that judges val after every epoch, got "
            f"check_val_every_n_epoch={trainer.check_val_every_n_epoch}, limit_val_batches={limit}",
            hint="val chooses the best epoch: leave both as they are",
        )


class _Keeper(Callback):
    """Keeps the history and the best epoch of a module in a trial, and stops the Trainer after a Ctrl-C."""

    def __init__(self, trial: Trial, progress: Progress | None, interruption: Interruption) -> None:
        self._trial, self._progress, self._interruption = trial, progress, interruption
        self._began, self._rate = 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At its end a schedule has taken the next step already.
        self._began, self._rate = time.perf_counter(), float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._interruption.requested:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._interruption.requested:
            # Its last epoch was not finished.
            return
        found, config, past = trainer.callback_metrics, self._trial.config, len(self._trial.history)
        record = EpochRecord(
            epoch=past + 1,
            max_epochs=max(config.max_epochs, past + 1),
            train_loss=float(found["train_loss"]),
            val_loss=float(found["val_loss"]),
            val_score=float(found[f"val_{self._trial.metric}"]),
            seconds=time.perf_counter() - self._began,
            rate=self._rate,
        )
        head = pl_module.head
        assert isinstance(head, nn.Module)
        self._trial.take(record, lambda: {name: tensor.detach().clone() for name, tensor in head.state_dict().items()})
        if self._trial.trouble is not None:
            trainer.should_stop = True
            return
        self._interruption.keeping = True
        if self._progress is not None:
            self._progress(record)


def trainer_for(config: HeadConfig, device: torch.device, *callbacks: Callback) -> pl.Trainer:
    """A Trainer with the epochs and the patience of a head's options, and nothing that writes or prints."""
    stopping = EarlyStopping("val_loss", min_delta=config.min_delta, patience=config.patience)
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
        # Without this, Lightning takes a SLURM job for its own and waits for other ranks.
        plugins=[LightningEnvironment()],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # Lightning announces what hardware there is, on stderr, for every head. Its warnings still come through,
    # but for these: an unused GPU was the user's choice, the deprecation is between Lightning and torch,
    # batches that lie in memory need no worker processes, and a last batch too short for a batch norm has no loss.
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
