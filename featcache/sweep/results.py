"""What a sweep has so far: heads by row of its table, what they say together, and which may yet be chosen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from featcache.heads.metrics import accuracy_interval
from featcache.heads.records import Score
from featcache.heads.stopping import Interruption
from featcache.rows.resampling import mean_interval
from featcache.sweep.fits import Swept
from featcache.sweep.plan import Round, SweepPlan
from featcache.sweep.records import Estimate, SweepRow, SweptHead


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """A row of the table: a combination's number, and shots."""

    number: int
    shots: int | None


class SweepResults:
    """What has been swept so far, row by row. Only heads that may yet be chosen are kept to be built."""

    def __init__(self, plan: SweepPlan, rounds: Sequence[Round]) -> None:
        self._plan = plan
        self._wanted = {
            RowKey(number=number, shots=shots): _heads_wanted(plan, number, shots, rounds)
            for shots in dict.fromkeys(round_.shots for round_ in rounds)
            for number in range(len(plan.combinations))
        }
        self._found: dict[RowKey, list[Swept]] = {}
        self.interrupted = False

    def collect(self, coming: Iterable[tuple[Round, Swept]], interruption: Interruption) -> None:
        """Take all that comes until Ctrl-C ends it. Raises KeyboardInterrupt if it came before any head was judged."""
        try:
            for round_, swept in coming:
                key = RowKey(number=swept.number, shots=round_.shots)
                self._found.setdefault(key, []).append(swept)
                self._drop_beaten(key)
                interruption.keeping = True
        except KeyboardInterrupt:
            judged = any(swept.record.judged is not None for several in self._found.values() for swept in several)
            if interruption.insisted or not judged:
                raise
            self.interrupted = True

    def rows(self) -> dict[RowKey, SweepRow]:
        """All rows that have a head."""
        return {key: self._row(key) for key in self._found}

    def heads(self, key: RowKey) -> list[Swept]:
        """The heads of a row that can be built."""
        return [swept for swept in self._found[key] if swept.fitted is not None]

    def _row(self, key: RowKey) -> SweepRow:
        one = self._plan.combinations[key.number]
        heads = tuple(swept.record for swept in self._found[key])
        return SweepRow(
            said=one.said,
            config=one.config,
            heads=heads,
            wanted=self._wanted[key],
            shots=key.shots,
            estimate=estimated(heads, seed=self._plan.seeds[0]),
        )

    def _drop_beaten(self, key: RowKey) -> None:
        # A complete row that is not the best of its kind will never be chosen.
        if len(self._found[key]) < self._wanted[key]:
            return
        rivals = [other for other in self._found if other.shots == key.shots and self.heads(other)]
        complete = [other for other in rivals if len(self._found[other]) == self._wanted[other]]
        best = max(complete, key=lambda other: self._row(other).rank, default=None)
        for other in complete:
            if other != best:
                self._found[other] = [swept.forgotten() for swept in self._found[other]]


def _heads_wanted(plan: SweepPlan, number: int, shots: int | None, rounds: Sequence[Round]) -> int:
    cases = [case for round_ in rounds if round_.shots == shots for case in round_.cases]
    solved = plan.combinations[number].config.architecture.solved
    return len({id(case.cut) for case in cases}) if solved else len(cases)


def estimated(heads: Sequence[SweptHead], *, seed: int) -> Estimate | None:
    """What heads of one row say together; None where none was judged. `seed`: the bootstrap's.

    Folds are pooled: every image counts the same, and with several seeds the accuracy is the mean of theirs.
    """
    judged = [(head, score) for head in heads for score in [head.judged] if score is not None]
    if not judged:
        return None
    scores = [score for _, score in judged]
    if heads[0].fold is None:
        return mean_estimate(scores, independent=heads[0].draw is not None)
    images = [head.held_images for head, _ in judged]
    pooled = mean_estimate(scores, independent=False, weights=images)
    everyone = round(sum(images) / len({head.seed for head, _ in judged}))
    return replace(pooled, interval=accuracy_interval(round(pooled.accuracy * everyone), everyone, seed=seed))


def mean_estimate(scores: Sequence[Score], *, independent: bool, weights: Sequence[int] | None = None) -> Estimate:
    """Their means; with an interval where they are independent of each other."""
    accuracies = [score.accuracy for score in scores]
    return Estimate(
        accuracy=statistics.fmean(accuracies, weights),
        loss=statistics.fmean((score.loss for score in scores), weights),
        spread=statistics.stdev(accuracies) if len(scores) > 1 else None,
        interval=mean_interval(accuracies) if independent else None,
    )
