"""The result of fitting a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from featcache.heads.metrics import Outcome
from featcache.heads.records import EpochRecord, Score
from featcache.heads.solved import SolvedHead

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """The head of the best epoch (or candidate), its outputs on val, and the history of the fit.

    Attributes:
        head: The head.
        val: Its outputs on val, and the targets.
        last: The score of the last epoch on val.
        history: A record of every epoch or candidate.
        best_epoch: Number of the best epoch or candidate, counted from 1.
        interrupted: Whether Ctrl-C ended the fit.
        seconds: Duration of the fit.
        notes: Sentences for the user.
        folded: Number of learned parameters that were folded into others of the final head.
        threads: Torch's threads during training; None if the number was not set.
    """

    head: nn.Module | SolvedHead
    val: Outcome
    last: Score
    history: tuple[EpochRecord, ...]
    best_epoch: int
    interrupted: bool
    seconds: float
    notes: tuple[str, ...] = ()
    folded: int = 0
    threads: int | None = None

    @property
    def trainable(self) -> int:
        """Number of learned parameters."""
        if isinstance(self.head, SolvedHead):
            return self.head.learned
        left = sum(parameter.numel() for parameter in self.head.parameters() if parameter.requires_grad)
        return left + self.folded

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The tensors of the head that a run stores, by name."""
        if isinstance(self.head, SolvedHead):
            return self.head.tensors()
        return {name: tensor.cpu().numpy() for name, tensor in self.head.state_dict().items()}
