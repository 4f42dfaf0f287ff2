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

    def is_over(self, val_loss: float) -> bool:
        """Take the next epoch's val loss; True once patience has run out."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


class Interruption:
    """Ctrl-C as a wish, for as long as a head is being fitted.

    The first one only sets `requested`, which training looks at after every step. A second one is raised as
    KeyboardInterrupt at once. On leaving, SIGINT is as it was found: Lightning leaves it ignored after a Ctrl-C of
    its own. A handler that somebody else has set stays in charge, and so does everything outside the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._found: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._found = signal.getsignal(signal.SIGINT)
            if self._found is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._found is not None:
            signal.signal(signal.SIGINT, self._found)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
