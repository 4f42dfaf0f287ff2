"""Where an extraction's time goes: what its main thread waited for, and what it did itself.

Decoding and writing run in threads of their own, so only what the main thread had to wait for counts: a stage that
keeps up costs nothing here, however busy it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_Clock = Callable[[], float]
STAGES = ("decode", "compute", "write")


@dataclass(kw_only=True)
class Stages:
    """Seconds of the main thread by stage. `clock` gives seconds."""

    clock: _Clock = time.perf_counter
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, stage: str, seconds: float) -> None:
        """Counts so many seconds for `stage`."""
        self._seconds[stage] += seconds

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Counts what happens inside for `stage`; a measurement inside another would count twice."""
        began = self.clock()
        try:
            yield
        finally:
            self.add(stage, self.clock() - began)

    @property
    def seconds(self) -> dict[str, float]:
        """So many of each stage so far."""
        return dict(self._seconds)

    @property
    def shares(self) -> dict[str, float] | None:
        """Each stage's share of the measured time, 1 in all; None where nothing was measured."""
        total = sum(self._seconds.values())
        return {stage: seconds / total for stage, seconds in self._seconds.items()} if total else None

    @property
    def bound(self) -> str | None:
        """The stage that takes most of the time: making another one faster would gain less."""
        return max(STAGES, key=lambda stage: self._seconds[stage]) if self.shares else None


@dataclass(kw_only=True)
class Stopwatch:
    """Seconds inside of `with watch`, all periods together. `clock` gives seconds."""

    clock: _Clock = time.monotonic
    _before: float = 0.0
    _since: float | None = None

    def __enter__(self) -> None:
        """Start, or go on."""
        self._since = self.clock()

    def __exit__(self, *_: object) -> None:
        """Stop until it is entered again."""
        self._before, self._since = self.read(), None

    def read(self) -> float:
        """The seconds so far."""
        return self._before + (self.clock() - self._since if self._since is not None else 0.0)
