"""The interface through which long runs report messages, warnings and progress."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from featcache.progress import StageProgress, call_bar

_log = logging.getLogger("featcache")


class Reporter(Protocol):
    """Receives messages and progress of a long run."""

    def info(self, text: str) -> None:
        """Report one sentence of information."""

    def warn(self, text: str) -> None:
        """Report one sentence that must not be overlooked."""

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """Report progress.

        Args:
            stage: What is done now, such as "reading", "extracting" or "packing".
            done, total: Images, or bytes for "packing".
            bound: What the run waits for most ("decode", "compute", "write"), where that is known.
        """


class LogReporter:
    """Sends messages to the logger "featcache", and drops progress: the default for calls from Python."""

    def info(self, text: str) -> None:
        _log.info(text)

    def warn(self, text: str) -> None:
        _log.warning(text)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """Drop the progress."""


class ProgressReporter(LogReporter):
    """Text goes to the logger "featcache", progress to a function or a progress bar. Use it as a context manager.

    Args:
        progress: Called with (stage, images done, images in all). None or True: a bar, in a terminal or a notebook.
            False: progress goes nowhere.
    """

    def __init__(self, progress: StageProgress | bool | None) -> None:
        self._progress = progress if callable(progress) else None
        self._bar = call_bar(progress)

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """Call the function, or draw the bar."""
        if self._progress is not None:
            self._progress(stage, done, total)
        self._bar.advance(stage, done, total, bound=bound)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


@dataclass(kw_only=True)
class _Part:
    """Reports one of several parts: adds its name to messages, and its progress to that of all parts."""

    name: str
    whole: Reporter
    counts: dict[str, dict[str, tuple[int, int]]] = field(repr=False)

    def info(self, text: str) -> None:
        self.whole.info(f"{self.name}: {text}")

    def warn(self, text: str) -> None:
        self.whole.warn(f"{self.name}: {text}")

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        counts = self.counts.setdefault(stage, {})
        counts[self.name] = done, total
        sums = [sum(column) for column in zip(*counts.values(), strict=True)]
        self.whole.advance(stage, sums[0], sums[1], bound=bound)


def split_reporter(whole: Reporter, names: Sequence[str]) -> list[Reporter]:
    """A Reporter for each of `names`, all of which report to `whole`."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    return [_Part(name=name, whole=whole, counts=counts) for name in names]
