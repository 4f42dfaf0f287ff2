"""What a fit gives."""

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
class Fitted:
    """The head of the best epoch (or candidate), what it says of val, and how the fit went.

    `folded`: numbers that were learned, and folded into others of the head when it was done. `threads`: torch's while
    it was trained; None for what the process has.
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
        """How many numbers were learned."""
        if isinstance(self.head, SolvedHead):
            return self.head.learned
        left = sum(parameter.numel() for parameter in self.head.parameters() if parameter.requires_grad)
        return left + self.folded

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a run stores of the head, by name."""
        if isinstance(self.head, SolvedHead):
            return self.head.tensors()
        return {name: tensor.cpu().numpy() for name, tensor in self.head.state_dict().items()}
