"""One head in training: its options, its epochs so far, its best tensors. And the batches that heads learn from."""

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
    """What rows are standardised by while a head learns from them; it is folded into the head afterwards.

    Attributes:
        features: Of the features; None for nothing.
        targets: Of targets that are numbers; None for other kinds.
    """

    features: Standardisation | None = None
    targets: TargetScale | None = None
    _tensors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def deviations(self) -> NDArray[np.float64] | None:
        """The unit in which the loss of numbers is measured, float64 (C,)."""
        return None if self.targets is None else self.targets.deviation

    def standardised(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Standardised features float32 (B, D); written into `out` where it is given."""
        if self.features is None:
            return features
        mean, deviation = self._on(features.device, "features", self.features.mean, self.features.deviation)
        return torch.sub(features, mean, out=out).mul_(deviation)

    def scaled(self, targets: Tensor) -> Tensor:
        """Targets as heads learn them: int64 (B,) for one class, float32 (B, C) for several and for numbers."""
        if self.targets is None:
            return targets if targets.dtype == torch.int64 else targets.float()
        mean, factor = self._on(targets.device, "targets", self.targets.mean, self.targets.deviation)
        # In the precision that targets have: of large numbers float32 would drop what differs.
        return torch.sub(targets, mean).mul_(factor).float()

    def _on(
        self, device: torch.device, name: str, mean: NDArray[np.float64], deviation: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor]:
        """A mean and one over a deviation on a device: float32 for features, float64 for targets where it has that."""
        key = f"{name} on {device}"
        if key not in self._tensors:
            kind = torch.float32 if name == "features" or device.type == "mps" else torch.float64
            shift, factor = torch.from_numpy(mean), torch.from_numpy(1 / deviation)
            self._tensors[key] = shift.to(device, kind), factor.to(device, kind)
        return self._tensors[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An order of rows that heads learn from. Sources of one training have batches of the same sizes.

    Attributes:
        batches: The rows.
        scaling: What standardises them. Sources that show the same rows share one.
    """

    batches: Batches
    scaling: Scaling = field(default_factory=Scaling)

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, standardised: float32 (B, D) and the targets. `reuse`: as batches have it."""
        for features, targets in self.batches.epoch(number, reuse=reuse):
            # A batch belongs to this loop alone.
            yield self.scaling.standardised(features, out=features), self.scaling.scaled(targets)


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """Batches of several sources as (G, B, D) and (G, B, ...)."""
    # One source needs no copy.
    if len(batches) == 1:
        return batches[0][0][None], batches[0][1][None]
    return torch.stack([features for features, _ in batches]), torch.stack([targets for _, targets in batches])


class Trial:
    """One head in training.

    Args:
        config: Its options.
        source: The number of the source that its batches come from.
        metric: What the score of an epoch is; see Score.

    Attributes:
        history: Finished epochs.
        best_epoch: That of the lowest val loss, counted from 1; 0 before the first.
        best: The tensors of that epoch by name, as the stack has them.
        trouble: Why it ended early, in a sentence; None where it did not.
        over: Whether patience, epochs or its numbers have ended it.
        threads: Torch's while it was trained on the CPU.
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
        # Half the patience that ends a training, so that a lower rate still has its chance.
        self._plateau = Plateau(patience=config.patience // 2, min_delta=config.min_delta)

    @property
    def rate(self) -> float:
        """The learning rate of the next epoch."""
        return scheduled_rate(self.config, len(self.history)) * self._plateau.scale

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it: neither patience, nor its last epoch, nor its numbers."""
        return not self.over

    def require_sound(self) -> None:
        """Raises HeadError where its numbers have ended it."""
        if self.trouble is not None:
            raise HeadError(f"training {self.trouble}", hint=f"a lower --lr, for example {self.config.lr / 10:g}")

    @property
    def val(self) -> Score | None:
        """That of the best epoch; None before the first epoch and for a head that diverged."""
        return None if self.trouble is not None or not self.history else self._score(self.history[self.best_epoch - 1])

    @property
    def last(self) -> Score:
        """That of the last epoch."""
        return self._score(self.history[-1])

    @property
    def seconds(self) -> float:
        """What its epochs took."""
        return sum(record.seconds for record in self.history)

    def take(self, record: EpochRecord, tensors: Callable[[], dict[str, Tensor]]) -> None:
        """One more epoch; `tensors` gives those at its end, and is called if they are the best so far."""
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
        """How far it is, as JSON values; its best tensors are not among them."""
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
        """Be as far as `progress` says, with these best tensors. Raises KeyError or TypeError for anything else."""
        self.history = [EpochRecord(**record) for record in progress["history"]]
        self.best_epoch, self.trouble, self.over = (progress[name] for name in ("best_epoch", "trouble", "over"))
        self.threads = progress["threads"]
        self.best = dict(best)
        self._patience = replace(self._patience, **progress["patience"])
        self._plateau = replace(self._plateau, **progress["plateau"])

    def _score(self, record: EpochRecord) -> Score:
        return Score(value=record.val_score, loss=record.val_loss, metric=self.metric)


def scheduled_rate(config: HeadConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: a half cosine falls from lr towards 0 over `max_epochs`.

    What a plateau takes off it depends on the losses (heads/stopping.py).
    """
    if config.schedule != "cosine":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.max_epochs))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without what JSON cannot hold: an infinite loss is that of the beginning."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
