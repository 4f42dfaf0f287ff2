"""Training a head with Lightning's Trainer, at the speed of a bare loop.

The Trainer gets one item an epoch: the batches themselves. So its own work (hooks, fetching, progress, closures)
is done once an epoch, and the steps run inside one `training_step` with manual optimisation. Metrics are computed
once an epoch over all val logits.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.errors import HeadError
from featcache.heads.config import SMALLEST_NORMED_BATCH, HeadConfig
from featcache.heads.metrics import evaluate
from featcache.heads.records import EpochRecord, Progress
from featcache.heads.stopping import Interruption, Patience, Plateau
from featcache.rows.batches import Epochs
from featcache.training.augmentation import mixed
from featcache.training.checkpoints import Checkpoint, State
from featcache.training.optimizer_state import optimizer_tensors, random_tensors, restore_optimizer, restore_random


class HeadModule(pl.LightningModule):
    """A head, its optimiser, and the memory of its best epoch (that of the lowest val loss).

    `history`: the finished epochs. `best_epoch`: 0 before the first. `class_weights`: float32 (C,), what an image of
    each class counts in the loss. `epoch_ended` is given `state` after every epoch.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        head: nn.Module,
        config: HeadConfig,
        *,
        interruption: Interruption | None = None,
        progress: Progress | None = None,
        class_weights: Tensor | None = None,
        epoch_ended: Callable[[State], None] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        # Not in the state: the head is what is kept.
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.head = head
        self.config = config
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self._best: dict[str, Tensor] = {}
        self._patience = Patience(patience=config.patience, min_delta=config.min_delta)
        self._plateau = plateau_of(config)
        self._interruption = interruption or Interruption()
        self._progress = progress
        self._epoch_ended = epoch_ended
        self._resumed: Checkpoint | None = None
        self._lr = config.lr
        self._train_loss = float("nan")
        self._began = 0.0

    def forward(self, features: Tensor) -> Tensor:
        """float32 (B, D) -> logits float32 (B, C)."""
        logits: Tensor = self.head(features)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser, as it was at the checkpoint that training goes on from."""
        optimizer = self._new_optimizer()
        if self._resumed is not None:
            restore_optimizer(optimizer, self._resumed.part("optimizer"))
        return optimizer

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # As one fused operation over all parameters.
        parameters, lr, weight_decay = self.head.parameters(), self.config.lr, self.config.weight_decay
        if self.config.optimizer == "sgd":
            momentum = self.config.momentum
            return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=True)
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock, and a resumed training's random numbers where they had been."""
        self._began = time.perf_counter()
        if self._resumed is not None:
            restore_random(self._resumed.part("random"), self.device)
            self._resumed = None

    def training_step(self, batches: Epochs, index: int) -> None:
        """All steps of one epoch. Raises TrainingInterruptedError after the step in which a Ctrl-C came."""
        with _interruptible():
            self._train_epoch(batches)
        self._require_finite("train loss", self._train_loss)

    def _train_epoch(self, batches: Epochs) -> None:
        optimizer = self._optimizer()
        self._lr = epoch_lr(self.config, len(self.history)) * self._plateau.scale
        for group in optimizer.param_groups:
            group["lr"] = self._lr
        parameters = list(self.head.parameters())
        total, rows = torch.zeros((), device=self.device), 0
        for features, labels in batches.epoch(len(self.history), reuse=True):
            if self._is_left_out(len(labels), rows):
                break
            optimizer.zero_grad(set_to_none=True)
            loss = self._loss(features, labels)
            torch.autograd.backward(loss)
            if self.config.l1:
                add_l1_gradient(parameters, self.config.l1)
            optimizer.step()
            total += loss.detach() * len(labels)
            rows += len(labels)
            self._stop_if_asked()
        self._train_loss = float(total) / rows

    def _is_left_out(self, rows: int, trained: int) -> bool:
        # The last rows of an epoch, too few to be normalised among each other: they come again in the next.
        return self.config.batch_norm and trained > 0 and rows < SMALLEST_NORMED_BATCH

    def _loss(self, features: Tensor, labels: Tensor) -> Tensor:
        weight, smoothing = self.class_weights, self.config.label_smoothing
        if not self.config.mixup:
            return F.cross_entropy(self.head(features), labels, weight=weight, label_smoothing=smoothing)
        mixture = mixed(features, labels, self.config.mixup)
        return mixture.loss(self.head(mixture.features), weight=weight, label_smoothing=smoothing)

    def validation_step(self, batches: Epochs, index: int) -> None:
        """Judge the epoch on val, remember its weights if they are the best, stop when patience is over."""
        with _interruptible():
            score = evaluate(self.head, batches).score()
        self._require_finite("val loss", score.loss)
        record = EpochRecord(
            epoch=len(self.history) + 1,
            max_epochs=self.config.max_epochs,
            train_loss=self._train_loss,
            val_loss=score.loss,
            val_score=score.accuracy,
            seconds=time.perf_counter() - self._began,
            lr=self._lr,
        )
        self._remember(record)
        if self._patience.is_over(score.loss):
            self.trainer.should_stop = True
        if self.config.schedule == "plateau":
            self._plateau.step(score.loss)
        with _interruptible():
            if self._epoch_ended is not None:
                self._epoch_ended(self.state)
            if self._progress is not None:
                self._progress(record)
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._interruption.requested:
            raise KeyboardInterrupt

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the head."""
        self.head.load_state_dict(self._best)

    def _remember(self, record: EpochRecord) -> None:
        if not self.history or record.val_loss < min(past.val_loss for past in self.history):
            for name, tensor in self.head.state_dict().items():
                self._best.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
            self.best_epoch = record.epoch
        self.history.append(record)
        self._interruption.keeping = True

    @property
    def finished(self) -> bool:
        """Whether patience or epochs have run out."""
        return self._patience.over or len(self.history) >= self.config.max_epochs

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All that the next epoch depends on, and all that is kept of the past ones: JSON values, and tensors."""
        progress = {
            "history": [asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "patience": {"best": self._patience.best, "waited": self._patience.waited},
            "plateau": asdict(self._plateau) if self.config.schedule == "plateau" else None,
        }
        parts = {
            "head": self.head.state_dict(),
            "best": self._best,
            "optimizer": optimizer_tensors(self._optimizer()),
            "random": random_tensors(self.device),
        }
        return progress, {
            f"{part}.{name}": one.cpu() for part, tensors in parts.items() for name, one in tensors.items()
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same training. Raises HeadError for one that does not fit."""
        progress = checkpoint.progress
        try:
            self.head.load_state_dict(checkpoint.part("head"))
            # Copied, for it will be written to, and lies in the file.
            self._best = {name: tensor.clone() for name, tensor in checkpoint.part("best").items()}
            self.history = list(checkpoint.history)
            self.best_epoch = progress["best_epoch"]
            self._patience = replace(self._patience, **progress["patience"])
            if progress["plateau"] is not None:
                self._plateau = Plateau(**progress["plateau"])
        except (RuntimeError, KeyError, TypeError) as error:
            raise HeadError(f"the checkpoint does not fit this training: {error}", hint="train again") from error
        self._resumed = checkpoint
        self._interruption.keeping = True

    def _optimizer(self) -> torch.optim.Optimizer:
        # Lightning's wrapper would run its profiler and hooks at every step.
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"expected one optimiser, got {optimizer!r}")
        return optimizer

    def _require_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        epoch = len(self.history) + 1
        before = f"; epoch {epoch - 1} still had val loss {self.history[-1].val_loss:.4g}" if self.history else ""
        raise HeadError(
            f"training diverged: {name} is {value} in epoch {epoch} with lr {self.config.lr:g}{before}",
            hint=f"a lower --lr, for example {self.config.lr / 10:g}",
        )


class TrainingInterruptedError(Exception):
    """A Ctrl-C on its way out of the Trainer, which would turn KeyboardInterrupt into SystemExit."""


class OncePerEpoch:
    """What the Trainer takes for a loader: the batches as its only item."""

    def __init__(self, batches: Epochs) -> None:
        self._items = [batches]

    def __iter__(self) -> Iterator[Epochs]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def let_go(self) -> None:
        """Hold the batches no longer."""
        self._items.clear()


def fit(module: HeadModule, train: Epochs, val: Epochs, interruption: Interruption) -> bool:
    """Train until patience, epochs or the user end it, and put the best epoch back into `module.head`.

    Returns whether it was interrupted. Ctrl-C keeps the best epoch so far; before the first finished epoch there
    is none, and KeyboardInterrupt is raised, as it is at a second Ctrl-C. Raises HeadError if the loss stops being
    finite.
    """
    interrupted = False
    with interruption, _quiet():
        try:
            if not module.finished:
                _run(_trainer(module.config.max_epochs - len(module.history), train.device), module, train, val)
        except (TrainingInterruptedError, KeyboardInterrupt):
            interrupted = True
        except SystemExit as stop:
            # A KeyboardInterrupt inside the Trainer comes out as this.
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            interrupted = True
    if not module.history or interruption.insisted:
        raise KeyboardInterrupt
    module.restore_best()
    return interrupted


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise TrainingInterruptedError from error


def epoch_lr(config: HeadConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: a half cosine falls from lr towards 0 over `max_epochs`.

    What a plateau takes off it depends on the losses (heads/stopping.py).
    """
    if config.schedule != "cosine":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.max_epochs))


def plateau_of(config: HeadConfig) -> Plateau:
    """What takes the learning rate down: half the patience that ends a training, so that it still has its chance."""
    return Plateau(patience=config.patience // 2, min_delta=config.min_delta)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights float32 (C,) that let every class count the same: N / (C x its rows). Labels: int64 (N,)."""
    return len(labels) / (classes * torch.bincount(labels, minlength=classes).float())


def l1_norm(parameters: Iterable[Tensor]) -> float:
    """Sum of absolute values of every parameter, weights and biases."""
    return sum(float(parameter.detach().abs().sum()) for parameter in parameters)


def add_l1_gradient(parameters: Iterable[Tensor], l1: float) -> None:
    """Add the gradient of `l1 * l1_norm` to what `backward` left.

    The sign is that gradient. Through autograd, the sum over millions of weights would cost as much as the head.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach().sign(), alpha=l1)


def _trainer(epochs: int, device: torch.device) -> pl.Trainer:
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The best epoch's weights are copied during validation, and must be ordinary tensors.
        inference_mode=False,
        # Without this, Lightning takes a SLURM job for its own and waits for other ranks.
        plugins=[LightningEnvironment()],
    )


def _run(trainer: pl.Trainer, module: HeadModule, train: Epochs, val: Epochs) -> None:
    loaders = OncePerEpoch(train), OncePerEpoch(val)
    try:
        trainer.fit(module, *loaders)
    finally:
        # Trainer and module point at each other, and would keep windows and moments until garbage is collected.
        trainer.strategy.optimizers = []
        for loader in loaders:
            loader.let_go()


@contextmanager
def _quiet() -> Iterator[None]:
    # Lightning announces what hardware there is, on stderr, for every head. Its warnings still come through,
    # but for these: an unused GPU was the user's choice, and the deprecation is between Lightning and torch.
    announcer = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = announcer.level
    announcer.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*\bavailable but not used")
            warnings.filterwarnings("ignore", message=r".*LeafSpec")
            yield
    finally:
        announcer.setLevel(level)
