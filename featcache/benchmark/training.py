"""One training of a head on any epochs, with the loss of every step kept: what end to end and cached are compared by.

It is `heads.fit`'s own sentence (build, HeadModule, fit, evaluate), with features that come from anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache.reader import FeatureCache
from featcache.heads.architectures import build_head
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome, evaluate
from featcache.heads.records import EpochRecord
from featcache.heads.stopping import Interruption
from featcache.rows.batches import Batch, Epochs, StreamedBatches
from featcache.rows.devices import seeded
from featcache.training.fitting import head_shape
from featcache.training.lightning import HeadModule, fit
from featcache.training.preparation import open_prepared, prepare


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a head is trained on, chosen by and tested on; `feature_dim` values a row, `classes` labels."""

    train: Epochs
    val: Epochs
    test: Epochs | None
    feature_dim: int
    classes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """`step_losses`: float32 (steps of all epochs,), each before its step was taken.

    `test_seconds`: one look at test.
    """

    history: tuple[EpochRecord, ...]
    step_losses: NDArray[np.float32]
    val: Outcome
    test: Outcome | None
    test_seconds: float


def train(parts: Parts, config: HeadConfig) -> Trained:
    """Train a head for all its epochs and put the best one back, as `fit_head` does, recording every step.

    Raises KeyboardInterrupt where Ctrl-C ended it: half a measurement is none.
    """
    place = parts.train.device
    with seeded(config.seed, place):
        head = build_head(config.architecture, head_shape(config, parts.feature_dim, parts.classes))
        module = HeadModule(head, config)
        recorded = Recorded(parts.train, head)
        if fit(module, recorded, parts.val, Interruption()):
            raise KeyboardInterrupt
    # The Trainer leaves the head on the CPU.
    head.to(place)
    val = evaluate(head, parts.val)
    began = time.perf_counter()
    test = None if parts.test is None else evaluate(head, parts.test)
    return Trained(
        history=tuple(module.history),
        step_losses=np.asarray(recorded.losses, np.float32),
        val=val,
        test=test,
        test_seconds=time.perf_counter() - began,
    )


class Recorded:
    """Epochs that keep the loss of every step: cross-entropy of the head's logits on the batch it was just given."""

    def __init__(self, epochs: Epochs, head: nn.Module) -> None:
        self._epochs = epochs
        self._logits = torch.empty(0)
        self.losses: list[float] = []
        head.register_forward_hook(self._remember)

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self._epochs.device

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, unchanged."""
        for features, labels in self._epochs.epoch(number, reuse=reuse):
            yield features, labels
            # Whoever asks for the next batch has taken the step on this one.
            self.losses.append(float(F.cross_entropy(self._logits, labels)))

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All rows as they stand, unchanged."""
        return self._epochs.in_order(reuse=reuse)

    def _remember(self, head: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self._logits = logits.detach()


def cached_parts(cache: FeatureCache, config: HeadConfig, place: torch.device) -> Parts:
    """The rows of a cache, cut and opened as `fit_head` does."""
    prepared = prepare(cache, config, place=place)
    train_rows, val_rows = open_prepared(prepared, config)
    test = prepared.rows.get("test")
    return Parts(
        train=train_rows,
        val=val_rows,
        test=None if test is None else StreamedBatches(test, batch_size=config.head_batch_size, seed=0, device=place),
        feature_dim=train_rows.feature_dim,
        classes=prepared.classes,
    )
