"""How long it will take, said once, as soon as it is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_KNOWN_AFTER_S = 8.0
_WORTH_SAYING_S = 60.0
_SLOWEST = {"decode": "decoding the images", "compute": "the forward pass", "write": "the disk"}


@dataclass(kw_only=True)
class Forecast:
    """Of `total` images. The first batch does not count: caches fill and memory is found while it runs."""

    total: int
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = None
    _said: bool = False

    def sentence(self, done: int, bound: str | None) -> str | None:
        """What to say after `done` images, at most once, and only of a run that has a minute to go or more."""
        now = self.clock()
        if self._first is None:
            self._first = now, done
            return None
        passed, images = now - self._first[0], done - self._first[1]
        if self._said or passed < _KNOWN_AFTER_S or images <= 0:
            return None
        self._said = True
        left = (self.total - done) * passed / images
        if left < _WORTH_SAYING_S:
            return None
        slowest = f"; {_SLOWEST[bound]} bounds it" if bound in _SLOWEST else ""
        return f"{images / passed:,.1f} images/s, about {_duration(left)} to go{slowest}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
