"""Measure where an extraction's time goes: what its main thread waits for, and what it does itself.

Decoding and writing run in their own threads. Only the time that the main thread waits for them counts: a stage that
is fast enough counts nothing, however busy its threads are.
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
    """Seconds of the main thread by stage. `clock` returns seconds."""

    clock: _Clock = time.perf_counter
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self._seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time inside the `with` block to a stage. Blocks must not be nested: time would count twice."""
        began = self.clock()
        try:
            yield
        finally:
            self.add(stage, self.clock() - began)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        return dict(self._seconds)

    @property
    def shares(self) -> dict[str, float] | None:
        """Each stage's share of the measured time, 1 in all; None where nothing was measured."""
        total = sum(self._seconds.values())
        return {stage: seconds / total for stage, seconds in self._seconds.items()} if total else None

    @property
    def bound(self) -> str | None:
        """The stage that takes most of the time; None where nothing was measured."""
        return max(STAGES, key=lambda stage: self._seconds[stage]) if self.shares else None


@dataclass(kw_only=True)
class Stopwatch:
    """Measures seconds inside `with watch` blocks, all blocks together. `clock` returns seconds."""

    clock: _Clock = time.monotonic
    _before: float = 0.0
    _since: float | None = None

    def __enter__(self) -> None:
        """Start, or continue."""
        self._since = self.clock()

    def __exit__(self, *_: object) -> None:
        """Pause."""
        self._before, self._since = self.read(), None

    def read(self) -> float:
        """The seconds so far."""
        return self._before + (self.clock() - self._since if self._since is not None else 0.0)
