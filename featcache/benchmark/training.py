"""Trains a head on epochs from any source and records the loss of every step, to compare end to end and cached.

The training is the notebook's: a LightningModule with Lightning's Trainer, EarlyStopping and torchmetrics.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from featcache.cache.reader import FeatureCache
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome
from featcache.heads.records import EpochRecord
from featcache.rows.batches import Epochs, StreamedBatches
from featcache.rows.target import HeadTarget
from featcache.training.by_trainer import train_module, trainer_for
from featcache.training.evaluation import evaluate
from featcache.training.finished import final_head
from featcache.training.lightning import HeadModule
from featcache.training.preparation import open_prepared, prepare


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The data of a training.

    Attributes:
        train, val, test: The epochs of each part; `test` is None without test images.
        feature_dim: Width D of a row.
        target: What the head predicts.
    """

    train: Epochs
    val: Epochs
    test: Epochs | None
    feature_dim: int
    target: HeadTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The result of a training.

    `step_losses`: float32 (steps of all epochs,), each before the update. `test_seconds`: time to evaluate test once.
    """

    history: tuple[EpochRecord, ...]
    step_losses: NDArray[np.float32]
    val: Outcome
    test: Outcome | None
    test_seconds: float


def train(parts: Parts, config: HeadConfig) -> Trained:
    """Train a head for all its epochs, restore the best one, and record every step. Features are not standardised.

    Raises KeyboardInterrupt after Ctrl-C, because half a measurement is useless.
    """
    device, target = parts.train.device, parts.target
    module, steps = HeadModule(config, target, parts.feature_dim), _StepLosses()
    trial = train_module(module, parts.train, parts.val, trainer_for(config, device, steps))
    if trial.interrupted:
        raise KeyboardInterrupt
    head = final_head(trial, module.scaling, target, parts.feature_dim).to(device)
    val = evaluate(head, parts.val, target)
    began = time.perf_counter()
    test = None if parts.test is None else evaluate(head, parts.test, target)
    return Trained(
        history=tuple(trial.history),
        step_losses=np.asarray(steps.losses, np.float32),
        val=val,
        test=test,
        test_seconds=time.perf_counter() - began,
    )


class _StepLosses(Callback):
    """Records the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def parts_of_cache(cache: FeatureCache, config: HeadConfig, device: torch.device) -> Parts:
    """The data of a training from a cache, cut and opened as in `fit_head`."""
    prepared = prepare(cache, config, device=device)
    train_rows, val_rows = open_prepared(prepared, config)
    test = prepared.rows.get("test")
    return Parts(
        train=train_rows,
        val=val_rows,
        test=None if test is None else StreamedBatches(test, batch_size=config.head_batch_size, seed=0, device=device),
        feature_dim=train_rows.feature_dim,
        target=prepared.target,
    )
