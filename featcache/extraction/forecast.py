"""An estimate of the remaining time, reported once, as soon as the speed is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_KNOWN_AFTER_S = 8.0
_LEAST_REPORTED_S = 60.0
_SLOWEST = {"decode": "decoding the images", "compute": "the forward pass", "write": "the disk"}


@dataclass(kw_only=True)
class Forecast:
    """Estimates the remaining time of `total` images. The first batch is a warm-up and does not count."""

    total: int
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = None
    _reported: bool = False

    def sentence(self, done: int, bound: str | None) -> str | None:
        """The estimate after `done` images, at most once, and only where a minute or more is left; else None."""
        now = self.clock()
        if self._first is None:
            self._first = now, done
            return None
        passed, images = now - self._first[0], done - self._first[1]
        if self._reported or passed < _KNOWN_AFTER_S or images <= 0:
            return None
        self._reported = True
        left = (self.total - done) * passed / images
        if left < _LEAST_REPORTED_S:
            return None
        slowest = f"; {_SLOWEST[bound]} bounds it" if bound in _SLOWEST else ""
        return f"{images / passed:,.1f} images/s, about {_duration(left)} to go{slowest}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
