"""One head on its way through a training that it shares with others, and the batches that it learns from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from featcache.heads.architectures import HeadShape, build_head
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Score
from featcache.heads.standardisation import Standardisation
from featcache.heads.stopping import Patience
from featcache.rows.batches import Batch, Batches
from featcache.training.lightning import epoch_lr, plateau_of
from featcache.training.stacked import Layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An order of rows that heads learn from. `standard`: what their features are standardised by; None for nothing.

    Sources of one training have batches of the same sizes; those that show the same rows share one `standard`.
    """

    batches: Batches
    standard: Standardisation | None = None

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, standardised: float32 (B, D) and int64 (B,). `reuse`: as batches have it."""
        for features, labels in self.batches.epoch(number, reuse=reuse):
            # A batch is nobody else's.
            yield self.standardised(features, out=features), labels

    def standardised(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """What StandardisedHead does to features, in the same arithmetic; written into `out` where it is given."""
        if self._shift is None:
            return features
        mean, scale = self._shift
        return torch.sub(features, mean, out=out).mul_(scale)

    @cached_property
    def _shift(self) -> tuple[Tensor, Tensor] | None:
        if self.standard is None:
            return None
        device = self.batches.device
        return self.standard.mean.float().to(device), (1 / self.standard.deviation).float().to(device)


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """Batches of several sources as (G, B, D) and (G, B)."""
    # One source needs no copy.
    if len(batches) == 1:
        return batches[0][0][None], batches[0][1][None]
    return torch.stack([features for features, _ in batches]), torch.stack([labels for _, labels in batches])


class Course:
    """One head on its way: its options, where its batches come from, and what is known after each epoch.

    `history`: finished epochs. `trouble`: why it ended early, in a sentence; None for one that did not.
    `threads`: torch's while it was trained on the CPU.
    """

    def __init__(self, config: HeadConfig, *, source: int = 0) -> None:
        self.config = config
        self.source = source
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.trouble: str | None = None
        self.over = False
        self.threads: int | None = None
        self._best: tuple[Layer, ...] = ()
        self._patience = Patience(patience=config.patience, min_delta=config.min_delta)
        self._plateau = plateau_of(config)

    @property
    def lr(self) -> float:
        """The learning rate of the next epoch."""
        return epoch_lr(self.config, len(self.history)) * self._plateau.scale

    @property
    def interrupted(self) -> bool:
        """Whether it was ended by Ctrl-C: neither by patience, nor by its last epoch, nor by its numbers."""
        return not self.over

    @property
    def val(self) -> Score | None:
        """That of the best epoch; None before the first epoch and for a head that diverged."""
        if self.trouble is not None or not self.history:
            return None
        return _score(self.history[self.best_epoch - 1])

    @property
    def last(self) -> Score:
        """That of the last epoch."""
        return _score(self.history[-1])

    def take(self, record: EpochRecord, layers: Callable[[], tuple[Layer, ...]]) -> None:
        """One more epoch; `layers` gives the weights at its end, and is asked for if they are the best so far."""
        for name, loss in (("train loss", record.train_loss), ("val loss", record.val_loss)):
            if not math.isfinite(loss):
                self.trouble = f"diverged: {name} is {loss} in epoch {record.epoch} with lr {self.config.lr:g}"
                self.over = True
                return
        if not self.history or record.val_loss < self.history[self.best_epoch - 1].val_loss:
            self._best, self.best_epoch = layers(), record.epoch
        self.history.append(record)
        self.over = self._patience.is_over(record.val_loss) or record.epoch == self.config.max_epochs
        if self.config.schedule == "plateau":
            self._plateau.step(record.val_loss)

    def head(self, shape: HeadShape, standard: Standardisation | None) -> nn.Module:
        """The head of the best epoch, on features as they are."""
        with torch.device("meta"):
            head = build_head(self.config.architecture, shape)
        tensors = [tensor for layer in self._best for tensor in layer]
        head.load_state_dict(
            {name: tensor.clone() for name, tensor in zip(head.state_dict(), tensors, strict=True)}, assign=True
        )
        if standard is not None:
            standard.fold_into(head)
        return head


def _score(record: EpochRecord) -> Score:
    return Score(value=record.val_score, loss=record.val_loss)
