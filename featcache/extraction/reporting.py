"""How a long run speaks to whoever started it, without knowing who that is."""

from __future__ import annotations

import logging
from typing import Protocol

_log = logging.getLogger("featcache")


class Reporter(Protocol):
    """Told what happens; never asked anything."""

    def say(self, text: str) -> None:
        """One sentence that is worth reading."""

    def warn(self, text: str) -> None:
        """One sentence that must not be overlooked."""

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        """`done` of `total` images are through `stage` ("reading", "extracting", "assembling").

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
