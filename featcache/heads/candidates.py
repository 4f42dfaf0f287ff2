"""Candidates of a solver, one per value of its hyperparameter, and the choice of the best one on val."""

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
    """A head that was solved for one value of the solver's hyperparameter.

    Attributes:
        name: The value as text, `C=0.1`.
        of: The largest possible number of candidates.
        build: Makes the head; only called for the best candidate.
        train_loss: Mean loss on train; nan where there is none.
        val: Score on val.
        trouble: A sentence, if the solver did not converge.
        at_end: Whether the value is the first or the last of a grid.
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
    """The best candidate, its number counted from 1, and a record of every candidate in order."""

    candidate: Candidate
    number: int
    history: tuple[EpochRecord, ...]
    interrupted: bool

    def notes(self) -> tuple[str, ...]:
        """Sentences for the user on how the candidate was chosen, and on problems."""
        best, tried = self.candidate, len(self.history)
        sentences = [] if best.of == 1 else [f"{best.name} was the best on val of {tried} candidates"]
        if best.at_end and tried > 1:
            sentences.append(f"{best.name} is at the end of the range that was tried: values beyond it may be better")
        return tuple(sentences) if best.trouble is None else (*sentences, best.trouble)


def is_better(one: Score, other: Score) -> bool:
    """Whether `one` is better than `other`: a higher value or, if the values are equal, a lower loss."""
    return (one.value, -one.loss) > (other.value, -other.loss)


def choose(candidates: Iterable[Candidate], *, interruption: Interruption, progress: Progress | None) -> Choice:
    """Solve all candidates and choose the best on val.

    Ctrl-C ends the search and keeps the best candidate so far; before the first candidate, KeyboardInterrupt is raised.
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
                    interruption.has_result = True
                history.append(_record(number, candidate, time.perf_counter() - began))
                if progress is not None:
                    progress(history[-1])
                if interruption.requested:
                    interrupted = True
                    break
                began = time.perf_counter()
        except KeyboardInterrupt:
            interrupted = True
    if best is None or interruption.aborted:
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
