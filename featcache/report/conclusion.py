"""What a report concludes: which run or combination is best, and whether the data distinguish it from the others.

Runs with one target are compared with the best of them on val, on the same images: of classes by McNemar's exact test
with Holm's correction for the number of comparisons (Holm, "A simple sequentially rejective multiple test procedure",
1979), of other targets by the interval of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featcache.errors import HeadError
from featcache.report.run_results import METRICS, RunResult, interval_text, score_text
from featcache.report.sweep_figures import SweepView, estimate_of, option_title
from featcache.runs.comparison import Comparison, compare_runs
from featcache.sweeps.records import Sweep

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A run compared with the best one, run minus best.

    `comparison`: None if they cannot be compared, for the reason in `problem`. `p_value`: corrected for the number of
    comparisons; None without a test. `differs`: whether the data distinguish the two.
    """

    result: RunResult
    comparison: Comparison | None
    problem: str = ""
    p_value: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the difference is larger than chance explains."""
        if self.comparison is None:
            return False
        low, high = self.comparison.interval
        return self.p_value < LEVEL if self.p_value is not None else low > 0 or high < 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The runs with one target. `best`: the one with the highest score on val. `pairs`: the others against it."""

    results: tuple[RunResult, ...]
    best: RunResult
    pairs: tuple[Pair, ...]

    @property
    def title(self) -> str:
        """The names of the target's columns."""
        return ", ".join(self.best.target.columns)


def groups_of(results: Sequence[RunResult]) -> list[Group]:
    """Results grouped by their target, the largest group first."""
    groups: dict[object, list[RunResult]] = {}
    for one in results:
        groups.setdefault((one.target.kind, one.target.columns, one.target.names), []).append(one)
    return [_group(group) for group in sorted(groups.values(), key=len, reverse=True)]


def _group(results: Sequence[RunResult]) -> Group:
    best = max(results, key=lambda one: (one.run.training.val.value, -one.run.training.val.loss))
    pairs = _correct([_pair(best, one) for one in results if one is not best])
    return Group(results=tuple(results), best=best, pairs=tuple(pairs))


def _pair(best: RunResult, other: RunResult) -> Pair:
    if other.part != best.part:
        problem = f"it was evaluated on {other.part}, the best on {best.part}"
        return Pair(result=other, comparison=None, problem=problem)
    try:
        return Pair(result=other, comparison=compare_runs(other.run, best.run, other.part))
    except HeadError as error:
        return Pair(result=other, comparison=None, problem=error.message)


def _correct(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs with p-values by Holm's method, sorted by them."""
    tested = [(one.comparison.p_value, one) for one in pairs if one.comparison and one.comparison.p_value is not None]
    tested.sort(key=lambda one: one[0])
    corrected: dict[int, float] = {}
    highest = 0.0
    for place, (p_value, pair) in enumerate(tested):
        highest = max(highest, min(1.0, p_value * (len(tested) - place)))
        corrected[id(pair)] = highest
    return [
        Pair(result=one.result, comparison=one.comparison, problem=one.problem, p_value=corrected.get(id(one)))
        for one in pairs
    ]


def runs_conclusion(group: Group) -> tuple[str, str]:
    """The best run in one sentence, and in another whether it differs from the others."""
    best = group.best
    images = len(best.predictions.ids)
    value = f"{score_text(best.score.value, best.metric)} {METRICS[best.metric]}"
    sentence = (
        f"{best.name} has {value} on {images:,} {best.part} images "
        f"(95 % interval {interval_text(best.interval, best.metric)})."
    )
    if not group.pairs:
        return sentence, "It is the only run of this target."
    ranked = f"It has the highest {METRICS[best.metric]} on val of {len(group.results)} runs."
    return sentence, f"{ranked} {_difference(group)}"


def _difference(group: Group) -> str:
    compared = [one for one in group.pairs if one.comparison is not None]
    if not compared:
        return "No other run can be compared with it on the same images."
    unsure = [one for one in compared if not one.differs]
    if not unsure:
        return f"The {group.best.part} images distinguish it from {_all(len(compared))}."
    names = _names([one.result.name for one in unsure])
    rest = len(compared) - len(unsure)
    also = f", but they distinguish it from {rest} other{'s' * (rest > 1)}" if rest else ""
    return f"The {group.best.part} images do not distinguish it from {names}{also}."


def _all(count: int) -> str:
    return "the other one" if count == 1 else f"all {count} others"


def _names(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(names[:2])} and {len(names) - 2} others"


def sweep_conclusion(sweep: Sweep) -> tuple[str, str]:
    """The best combination of a sweep in one sentence, and how sure that is in another."""
    view = SweepView(sweep)
    if not view.rows:
        return "No head of this sweep has a score.", ""
    best = estimate_of(view.final[0])
    count = len(view.final)
    among = f"The best of {count} combinations" if count > 1 else "The only combination"
    interval = f" (95 % interval {interval_text(best.interval, best.metric)})" if best.interval else ""
    shots = f" with {view.final[0].shots} images per class" if sweep.shots else ""
    sentence = (
        f"{among} is {view.name(view.final[0])}: {score_text(best.value, best.metric)} {METRICS[best.metric]} "
        f"{'on held-out folds' if sweep.folds else 'on val'}{shots}{interval}."
    )
    return sentence, " ".join(filter(None, [_overlap(view), _effects(view)]))


def _overlap(view: SweepView) -> str:
    count, tied = len(view.final), view.sweep.tied
    if count < 2 or not tied:
        return ""
    if tied == 1:
        return "Its interval overlaps that of no other combination."
    others = "one other combination" if tied == 2 else f"{tied - 1} others"
    return f"The data do not distinguish it from {others}: their intervals overlap."


def _effects(view: SweepView) -> str:
    effects = view.effects()
    if not effects:
        return ""
    digits = [
        f"{option_title(name)} ({f'{100 * span:.1f} points' if view.metric == 'accuracy' else f'{span:.3f}'})"
        for name, span in effects[:3]
    ]
    return f"Between the best and the worst value of an option: {', '.join(digits)}."
