"""When to stop, and which epoch to keep: plain arithmetic on val losses, with no trainer in sight."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType


@dataclass(kw_only=True)
class Patience:
    """Early stopping: enough epochs in a row whose val loss is not lower by more than `min_delta`.

    `best` is the lowest loss that counted as progress, so many small steps do add up to one.
    """

    patience: int
    min_delta: float
    best: float = float("inf")
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether it has run out."""
        return self.waited >= self.patience

    def is_over(self, val_loss: float) -> bool:
        """Take the next epoch's val loss; True once patience has run out."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        return self.over


@dataclass(kw_only=True)
class Plateau:
    """The learning rate falls to `factor` of itself after more than `patience` epochs in a row without progress.

    As torch's ReduceLROnPlateau does it, with an absolute threshold. `scale`: what is left of the rate.
    """

    patience: int
    min_delta: float
    factor: float = 0.1
    best: float = float("inf")
    waited: int = 0
    scale: float = 1.0

    def step(self, val_loss: float) -> None:
        """Take the next epoch's val loss."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = self.scale * self.factor, 0


class Interruption:
    """Ctrl-C as a wish, from the first step of a fit until its run is written.

    As long as there is nothing to keep, Ctrl-C is KeyboardInterrupt. Once `keeping` is set, the first one only sets
    `requested`, which training looks at after every step and nobody looks at while a run is written. A second one
    sets `insisted` and is KeyboardInterrupt at once.

    It may be entered again inside. On leaving, SIGINT is as it was found: Lightning leaves it ignored after a Ctrl-C
    of its own. A handler that somebody else has set stays in charge, and so does everything outside the main thread.
    """

    def __init__(self) -> None:
        self.keeping = False
        self.requested = False
        self.insisted = False
        self._found: list[Callable[[int, FrameType | None], object] | int | None] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            found = signal.getsignal(signal.SIGINT)
            self._found.append(found)
            if found is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._found:
            signal.signal(signal.SIGINT, self._found.pop())

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.insisted = self.requested
        if self.insisted or not self.keeping:
            raise KeyboardInterrupt
        self.requested = True
