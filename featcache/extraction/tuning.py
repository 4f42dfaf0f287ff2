"""Batch size and decoding threads find themselves while the first rows are computed.

First come two batches of every size in question, of which the second counts. Then threads are added, one by one,
as long as the forward pass waits for images and another thread helps: a thread that nobody waits for would only take
the processor from the forward pass. Nothing is computed twice and nothing is thrown away, and no row depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# The first batch of a size also builds its kernels.
_TRIALS = 2
# What is measured on a machine with other work scatters by as much.
_WORTHWHILE = 1.03
_STARVING = 0.05
_TRIALS_TO_REST = 4
_WINDOW_S, _WINDOW_BATCHES = 0.5, 4


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Images per forward pass, and threads that decode."""

    batch_size: int
    workers: int


@dataclass(kw_only=True)
class Tuner:
    """Proposes, is told how long it took, and settles.

    `sizes` are tried, ascending, beside `usual`, the size to stay with unless another is clearly faster; empty: that
    is fixed. `workers` to begin with, and at most `most_workers`. `learns`: what is found is worth remembering.
    """

    sizes: Sequence[int]
    usual: int
    workers: int
    most_workers: int
    learns: bool = True
    _found: Tuned | None = None
    _told: bool = False
    _trials: tuple[int, ...] = ()
    _proposed: int = 0
    _timed: int = 0
    _rates: dict[int, float] = field(default_factory=dict)
    _size: int | None = None
    _window: _Window = field(default_factory=lambda: _Window())
    _rate_before: float | None = None

    def __post_init__(self) -> None:
        self._trials = tuple(size for size in self.sizes for _ in range(_TRIALS))
        self._size = None if self.sizes else self.usual

    @property
    def largest(self) -> int:
        """No batch will have more images."""
        return max([self.usual, *self.sizes])

    def news(self) -> Tuned | None:
        """What was found, once."""
        if self._found is None or self._told or not self.learns:
            return None
        self._told = True
        return self._found

    def limit_to(self, images: int) -> None:
        """There are only so many images: sizes are tried where the trials are a small part of them."""
        if self._size is None and not self._proposed and images < _TRIALS_TO_REST * sum(self._trials):
            self._trials, self._size = (), self.usual

    def next_size(self) -> int:
        """How many images the next batch should have."""
        self._proposed += 1
        if self._proposed <= len(self._trials):
            return self._trials[self._proposed - 1]
        return self._size or self.usual

    def timed(self, images: int, *, waited_s: float, computed_s: float, most: int) -> None:
        """The next batch is through, in the order they were proposed.

        `images` of it could be read. `most`: memory suffices for no more at once.
        """
        if self._size is None:
            # A later trial of the same size replaces the first.
            self._rates[self._trials[self._timed]] = images / max(computed_s, 1e-9)
            self._timed += 1
            if self._timed == len(self._trials):
                self._size = self._fastest(most)
        elif self._found is None:
            self._window.add(images, waited_s, computed_s)
            if self._window.full:
                self._weigh_workers(self._size)

    def _fastest(self, most: int) -> int:
        usual = min(self.usual, most)
        fitting = [size for size in self.sizes if size <= most]
        fastest = max(fitting, key=self._rates.__getitem__, default=usual)
        clearly = self._rates.get(fastest, 0.0) > _WORTHWHILE * self._rates.get(usual, 0.0)
        return fastest if clearly else usual

    def _weigh_workers(self, size: int) -> None:
        rate, starving = self._window.rate, self._window.waiting > _STARVING
        self._window = _Window()
        if self._rate_before is not None and rate < _WORTHWHILE * self._rate_before:
            # The last one did not help.
            self.workers -= 1
        elif starving and self.workers < self.most_workers:
            self._rate_before = rate
            self.workers += 1
            return
        self._found = Tuned(batch_size=size, workers=self.workers)


@dataclass(kw_only=True)
class _Window:
    """A few batches, long enough to tell a rate."""

    images: int = 0
    batches: int = 0
    waited_s: float = 0.0
    computed_s: float = 0.0

    def add(self, images: int, waited_s: float, computed_s: float) -> None:
        # The first still comes from the threads there were before.
        if self.batches:
            self.images += images
            self.waited_s += waited_s
            self.computed_s += computed_s
        self.batches += 1

    @property
    def seconds(self) -> float:
        return self.waited_s + self.computed_s

    @property
    def full(self) -> bool:
        return self.batches > _WINDOW_BATCHES and self.seconds >= _WINDOW_S

    @property
    def rate(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float:
        return self.waited_s / max(self.seconds, 1e-9)
