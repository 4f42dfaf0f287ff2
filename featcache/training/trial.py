"""The state of one head in training (Trial), and the batches that heads are trained on (Source, Scaling)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featcache.errors import HeadError
from featcache.heads.config import HeadConfig
from featcache.heads.records import EpochRecord, Score
from featcache.heads.standardisation import Standardisation
from featcache.heads.stopping import Patience, Plateau
from featcache.heads.target_scale import TargetScale
from featcache.rows.batches import Batch, Batches


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """The standardisation of rows in training, which is folded into the head afterwards.

    Attributes:
        features: Standardisation of the features; None for none.
        targets: Scale of targets that are numbers; None for other kinds.
    """

    features: Standardisation | None = None
    targets: TargetScale | None = None
    _tensors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def deviations(self) -> NDArray[np.float64] | None:
        """The unit in which the loss of numbers is measured, float64 (C,)."""
        return None if self.targets is None else self.targets.deviation

    def standardise(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Standardise features float32 (B, D); the result is written into `out`, if it is given."""
        if self.features is None:
            return features
        mean, deviation = self._on(features.device, "features", self.features.mean, self.features.deviation)
        return torch.sub(features, mean, out=out).mul_(deviation)

    def scale_targets(self, targets: Tensor) -> Tensor:
        """Convert targets for training: int64 (B,) for one class, float32 (B, C) for several and for numbers."""
        if self.targets is None:
            return targets if targets.dtype == torch.int64 else targets.float()
        mean, factor = self._on(targets.device, "targets", self.targets.mean, self.targets.deviation)
        # In the precision of the targets: float32 would lose the differences between large numbers.
        return torch.sub(targets, mean).mul_(factor).float()

    def _on(
        self, device: torch.device, name: str, mean: NDArray[np.float64], deviation: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor]:
        """The mean and 1 / deviation on a device: float32 for features, float64 for targets if the device has it."""
        key = f"{name} on {device}"
        if key not in self._tensors:
            kind = torch.float32 if name == "features" or device.type == "mps" else torch.float64
            shift, factor = torch.from_numpy(mean), torch.from_numpy(1 / deviation)
            self._tensors[key] = shift.to(device, kind), factor.to(device, kind)
        return self._tensors[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Train rows in the order of one seed. All sources of a training have batches of the same sizes.

    Attributes:
        batches: The rows.
        scaling: Their standardisation, which sources with the same rows share.
    """

    batches: Batches
    scaling: Scaling = field(default_factory=Scaling)

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, standardised: float32 (B, D) and the targets. `reuse`: see `Batches.epoch`."""
        for features, targets in self.batches.epoch(number, reuse=reuse):
            # In place: a batch is a new tensor, or a buffer that is not used otherwise.
            yield self.scaling.standardise(features, out=features), self.scaling.scale_targets(targets)


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Stack the batches of several sources: features (G, B, D) and targets (G, B, ...)."""
    # No copy for one source.
    if len(batches) == 1:
        return batches[0][0][None], batches[0][1][None]
    return torch.stack([features for features, _ in batches]), torch.stack([targets for _, targets in batches])


class Trial:
    """The state of one head in training.

    Args:
        config: Its options.
        source: Number of the source of its batches.
        metric: The metric of an epoch's score; see Score.

    Attributes:
        history: Records of the epochs so far.
        best_epoch: The epoch with the lowest val loss, counted from 1; 0 before the first.
        best: The tensors of that epoch, by name.
        trouble: A sentence, if the loss became infinite or NaN; else None.
        over: Whether training has ended, by patience, the number of epochs, or a loss that is not finite.
        threads: Torch's threads during training on the CPU.
    """

    def __init__(self, config: HeadConfig, *, source: int = 0, metric: str = "accuracy") -> None:
        self.config = config
        self.source = source
        self.metric = metric
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.best: dict[str, Tensor] = {}
        self.trouble: str | None = None
        self.over = False
        self.threads: int | None = None
        self._patience = Patience(patience=config.patience, min_delta=config.min_delta)
        # Half the patience of early stopping, so that a lower rate has some epochs to improve the loss.
        self._plateau = Plateau(patience=config.patience // 2, min_delta=config.min_delta)

    @property
    def rate(self) -> float:
        """The learning rate of the next epoch."""
        return rate_at_epoch(self.config, len(self.history)) * self._plateau.scale

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training, since it is not over."""
        return not self.over

    def require_finite(self) -> None:
        """Raise HeadError if a loss became infinite or NaN."""
        if self.trouble is not None:
            raise HeadError(f"training {self.trouble}", hint=f"a lower --lr, for example {self.config.lr / 10:g}")

    @property
    def val(self) -> Score | None:
        """The score of the best epoch; None before the first epoch and for a head that diverged."""
        return None if self.trouble is not None or not self.history else self._score(self.history[self.best_epoch - 1])

    @property
    def last(self) -> Score:
        """The score of the last epoch."""
        return self._score(self.history[-1])

    @property
    def seconds(self) -> float:
        """Duration of all epochs so far."""
        return sum(record.seconds for record in self.history)

    def add_epoch(self, record: EpochRecord, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """Add an epoch. `tensors` returns the tensors at its end, and is called only if they are the best so far."""
        for name, loss in (("train loss", record.train_loss), ("val loss", record.val_loss)):
            if not math.isfinite(loss):
                self.trouble = f"diverged: {name} is {loss} in epoch {record.epoch} with lr {self.config.lr:g}"
                if self.history:
                    before = self.history[-1]
                    self.trouble += f"; epoch {before.epoch} still had val loss {before.val_loss:.4g}"
                self.over = True
                return
        if not self.history or record.val_loss < self.history[self.best_epoch - 1].val_loss:
            self.best, self.best_epoch = tensors(), record.epoch
        self.history.append(record)
        self.over = self._patience.is_over(record.val_loss) or record.epoch == self.config.max_epochs
        if self.config.schedule == "plateau":
            self._plateau.step(record.val_loss)

    def progress(self) -> dict[str, Any]:
        """The state as JSON values, without the best tensors."""
        return {
            "history": [asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "trouble": self.trouble,
            "over": self.over,
            "threads": self.threads,
            "patience": _finite({"best": self._patience.best, "waited": self._patience.waited}),
            "plateau": _finite(asdict(self._plateau)),
        }

    def resume(self, progress: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Restore a state from `progress`, and the best tensors. Raises KeyError or TypeError for anything else."""
        self.history = [EpochRecord(**record) for record in progress["history"]]
        self.best_epoch, self.trouble, self.over = (progress[name] for name in ("best_epoch", "trouble", "over"))
        self.threads = progress["threads"]
        self.best = dict(best)
        self._patience = replace(self._patience, **progress["patience"])
        self._plateau = replace(self._plateau, **progress["plateau"])

    def _score(self, record: EpochRecord) -> Score:
        return Score(value=record.val_score, loss=record.val_loss, metric=self.metric)


def rate_at_epoch(config: HeadConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: constant, or half a cosine from lr towards 0 over `max_epochs`.

    The schedule `plateau` depends on the losses, and is in heads/stopping.py.
    """
    if config.schedule != "cosine":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.max_epochs))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out infinite values, which JSON cannot hold: they are the initial ones."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
