"""What a solver offers, one value after another, and which of them is the best on val."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from featcache.errors import HeadError
from featcache.heads.records import EpochRecord, Progress, Score
from featcache.heads.solved import SolvedHead
from featcache.heads.stopping import Interruption


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One value of what a solver has to choose, solved.

    `name`: that value in words, `C=0.1`; `of`: how many there may be at most. `build` makes the head, which only
    the best one needs. `train_loss`: nan where there is none. `trouble`: a sentence, if it was not solved well.
    `at_end`: the value is the first or the last of a grid.
    """

    name: str
    of: int
    build: Callable[[], SolvedHead]
    train_loss: float
    val: Score
    trouble: str | None = None
    at_end: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The best candidate, its number counted from 1, and a record of each in the order in which they came."""

    candidate: Candidate
    number: int
    history: tuple[EpochRecord, ...]
    interrupted: bool

    def notes(self) -> tuple[str, ...]:
        """What has to be known of it, in sentences."""
        best, tried = self.candidate, len(self.history)
        sentences = [] if best.of == 1 else [f"{best.name} was the best on val of {tried} candidates"]
        if best.at_end and tried > 1:
            sentences.append(f"{best.name} lies at the end of what was tried: beyond it may be better")
        return tuple(sentences) if best.trouble is None else (*sentences, best.trouble)


def is_better(one: Score, other: Score) -> bool:
    """Whether `one` is: a higher value or, of equals, a lower loss."""
    return (one.value, -one.loss) > (other.value, -other.loss)


def choose(candidates: Iterable[Candidate], *, interruption: Interruption, progress: Progress | None) -> Choice:
    """Go through the candidates and keep the best on val.

    Ctrl-C keeps the best so far; before the first there is none, and KeyboardInterrupt is raised.
    Raises HeadError for a candidate whose val loss is not finite.
    """
    best: tuple[int, Candidate] | None = None
    history: list[EpochRecord] = []
    interrupted = False
    with interruption:
        try:
            began = time.perf_counter()
            for number, candidate in enumerate(candidates, start=1):
                _require_finite(candidate)
                if best is None or is_better(candidate.val, best[1].val):
                    best = (number, candidate)
                    interruption.keeping = True
                history.append(_record(number, candidate, time.perf_counter() - began))
                if progress is not None:
                    progress(history[-1])
                if interruption.requested:
                    interrupted = True
                    break
                began = time.perf_counter()
        except KeyboardInterrupt:
            interrupted = True
    if best is None or interruption.insisted:
        raise KeyboardInterrupt
    return Choice(candidate=best[1], number=best[0], history=tuple(history), interrupted=interrupted)


def _record(number: int, candidate: Candidate, seconds: float) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        max_epochs=candidate.of,
        train_loss=candidate.train_loss,
        val_loss=candidate.val.loss,
        val_score=candidate.val.value,
        seconds=seconds,
        candidate=candidate.name,
    )


def _require_finite(candidate: Candidate) -> None:
    if not math.isfinite(candidate.val.loss):
        raise HeadError(
            f"the solver's val loss is {candidate.val.loss} at {candidate.name}",
            hint="--head linear trains by steps",
        )
