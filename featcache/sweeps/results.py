"""Collects the heads of a sweep by table row, and computes the mean score of each row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from featcache.heads.class_metrics import wilson_interval
from featcache.heads.records import Score
from featcache.heads.stopping import Interruption
from featcache.rows.resampling import mean_interval
from featcache.sweeps.fits import SweepTrial
from featcache.sweeps.plan import Round, SweepPlan
from featcache.sweeps.records import Estimate, SweepRow, TrialResult


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """Identifies a row of the table: the index of its combination, and shots."""

    number: int
    shots: int | None


class SweepResults:
    """The heads trained so far, by row. Heads that can no longer be chosen are dropped; their records are kept.

    Args:
        plan: The sweep's plan.
        rounds: The rounds of one cache; the other caches have as many.
        val_images: Number of val images.
    """

    def __init__(self, plan: SweepPlan, rounds: Sequence[Round], *, val_images: int) -> None:
        self._plan, self._val_images = plan, val_images
        self._wanted = {
            RowKey(number=number, shots=shots): _heads_wanted(plan, number, shots, rounds)
            for shots in dict.fromkeys(round_.shots for round_ in rounds)
            for number in range(len(plan.combinations))
        }
        self._found: dict[RowKey, list[SweepTrial]] = {}
        self.interrupted = False

    def collect(self, coming: Iterable[tuple[Round, SweepTrial]], interruption: Interruption) -> None:
        """Collect all heads, or those before a Ctrl-C. Raises KeyboardInterrupt if no head has a score by then."""
        try:
            for round_, trial in coming:
                key = RowKey(number=trial.number, shots=round_.shots)
                self._found.setdefault(key, []).append(trial)
                self._drop_beaten(key)
                interruption.has_result = True
        except KeyboardInterrupt:
            judged = any(trial.record.judged is not None for several in self._found.values() for trial in several)
            if interruption.aborted or not judged:
                raise
            self.interrupted = True

    def rows(self) -> dict[RowKey, SweepRow]:
        """All rows with at least one head."""
        return {key: self._row(key) for key in self._found}

    def heads(self, key: RowKey) -> list[SweepTrial]:
        """The heads of a row that can still be built."""
        return [trial for trial in self._found[key] if trial.fitted is not None]

    def _row(self, key: RowKey) -> SweepRow:
        one = self._plan.combinations[key.number]
        heads = tuple(trial.record for trial in self._found[key])
        return SweepRow(
            values=one.values,
            config=one.config,
            cache=one.cache,
            heads=heads,
            wanted=self._wanted[key],
            shots=key.shots,
            estimate=estimate_row(heads, val_images=self._val_images),
        )

    def _drop_beaten(self, key: RowKey) -> None:
        # Of the complete rows with the same shots, only the best can be chosen.
        if self._plan.every or len(self._found[key]) < self._wanted[key]:
            return
        rivals = [other for other in self._found if other.shots == key.shots and self.heads(other)]
        complete = [other for other in rivals if len(self._found[other]) == self._wanted[other]]
        best = max(complete, key=lambda other: self._row(other).rank, default=None)
        for other in complete:
            if other != best:
                self._found[other] = [trial.without_head() for trial in self._found[other]]


def _heads_wanted(plan: SweepPlan, number: int, shots: int | None, rounds: Sequence[Round]) -> int:
    cases = [case for round_ in rounds if round_.shots == shots for case in round_.cases]
    solved = plan.combinations[number].config.architecture.solved
    return len({id(case.cut) for case in cases}) if solved else len(cases)


def estimate_row(heads: Sequence[TrialResult], *, val_images: int) -> Estimate | None:
    """The mean score of the heads of one row; None if no head has a score.

    Folds are weighted by their number of images, so every image counts the same; seeds are averaged.
    """
    judged = [(head, score) for head in heads for score in [head.judged] if score is not None]
    if not judged:
        return None
    scores = [score for _, score in judged]
    if heads[0].draw is not None:
        return mean_estimate(scores, independent=True)
    if heads[0].fold is None:
        return over_images(mean_estimate(scores, independent=False), val_images)
    images = [head.held_images for head, _ in judged]
    pooled = mean_estimate(scores, independent=False, weights=images)
    return over_images(pooled, round(sum(images) / len({head.seed for head, _ in judged})))


def over_images(one: Estimate, images: int) -> Estimate:
    """The estimate with Wilson's 95 % interval for `images` images, if its metric is accuracy; else unchanged."""
    return one if one.metric != "accuracy" else replace(one, interval=wilson_interval(one.value * images, images))


def mean_estimate(scores: Sequence[Score], *, independent: bool, weights: Sequence[int] | None = None) -> Estimate:
    """The means of scores; with a 95 % interval (Student's t) if they are independent of each other."""
    values = [score.value for score in scores]
    return Estimate(
        value=statistics.fmean(values, weights),
        loss=statistics.fmean((score.loss for score in scores), weights),
        metric=scores[0].metric,
        spread=statistics.stdev(values) if len(scores) > 1 else None,
        interval=mean_interval(values) if independent else None,
    )
