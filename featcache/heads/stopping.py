"""Early stopping, reduction of the learning rate on plateaus, and two-stage handling of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType


@dataclass(kw_only=True)
class Patience:
    """Early stopping after `patience` epochs in a row whose val loss did not fall by more than `min_delta`.

    `best` is the last loss that counted as progress, so several small steps can add up to progress. `waited`: epochs
    since then.
    """

    patience: int
    min_delta: float
    best: float = float("inf")
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.waited >= self.patience

    def is_over(self, val_loss: float) -> bool:
        """Add the val loss of the next epoch; True once patience has run out."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        return self.over


@dataclass(kw_only=True)
class Plateau:
    """Multiply the learning rate by `factor` after more than `patience` epochs in a row without progress.

    It works like torch's ReduceLROnPlateau with an absolute threshold. `scale`: current rate / initial rate.
    """

    patience: int
    min_delta: float
    factor: float = 0.1
    best: float = float("inf")
    waited: int = 0
    scale: float = 1.0

    def step(self, val_loss: float) -> None:
        """Add the val loss of the next epoch."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = self.scale * self.factor, 0


class Interruption:
    """Two-stage SIGINT, from the first step of a fit until its run is written: first stop, then abort.

    While there is no result to keep, Ctrl-C raises KeyboardInterrupt. Once `has_result` is set, the first Ctrl-C only
    sets `requested`, which training checks after every step; while a run is written it has no effect. A second one sets
    `aborted` and raises KeyboardInterrupt at once.

    The context manager can be nested. On leaving, it restores the handler of SIGINT: Lightning leaves the signal
    ignored after a Ctrl-C that it handled. It changes nothing if another handler is installed, or outside the main
    thread.
    """

    def __init__(self) -> None:
        self.has_result = False
        self.requested = False
        self.aborted = False
        self._handlers: list[Callable[[int, FrameType | None], object] | int | None] = []

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            self._handlers.append(handler)
            if handler is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handlers:
            signal.signal(signal.SIGINT, self._handlers.pop())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.aborted = self.requested
        if self.aborted or not self.has_result:
            raise KeyboardInterrupt
        self.requested = True
