"""How a long run speaks to whoever started it, without knowing who that is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger("featcache")


class Reporter(Protocol):
    """Told what happens; never asked anything."""

    def say(self, text: str) -> None:
        """One sentence that is worth reading."""

    def warn(self, text: str) -> None:
        """One sentence that must not be overlooked."""

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """`done` of `total` images are through `stage` ("reading", "extracting"), or bytes ("packing").

        `bound`: what the run waits for most of all ("decode", "compute", "write"), where that is known.
        """


class LogReporter:
    """Sentences go to the logger "featcache", progress nowhere: what a library does."""

    def say(self, text: str) -> None:
        _log.info(text)

    def warn(self, text: str) -> None:
        _log.warning(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """No progress without a terminal."""


@dataclass(kw_only=True)
class _Turn:
    """One of several who work in turns: its sentences carry its name, its progress counts into that of all."""

    name: str
    whole: Reporter
    counts: dict[str, dict[str, tuple[int, int]]] = field(repr=False)

    def say(self, text: str) -> None:
        self.whole.say(f"{self.name}: {text}")

    def warn(self, text: str) -> None:
        self.whole.warn(f"{self.name}: {text}")

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        counts = self.counts.setdefault(stage, {})
        counts[self.name] = done, total
        sums = [sum(column) for column in zip(*counts.values(), strict=True)]
        self.whole.advance(stage, sums[0], sums[1], bound=bound)


def taking_turns(whole: Reporter, names: Sequence[str]) -> list[Reporter]:
    """A Reporter for each of `names`, behind which stands one for all of them."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    return [_Turn(name=name, whole=whole, counts=counts) for name in names]


def human_bytes(count: float) -> str:
    """1_234_567 -> "1.2 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
