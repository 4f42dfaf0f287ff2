"""The notebook's recipes are trained: a sweep over their heads, on features that they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.cache.reader import FeatureCache
from featcache.notebook.recipes import Recipe
from featcache.notebook.reproduction import Features, Reproduction
from featcache.rows.notes import Report, tell
from featcache.sweeps.grid import Combination
from featcache.sweeps.plan import SweepPlan
from featcache.sweeps.records import Sweep
from featcache.sweeps.sweeping import SweepProgress, sweep_heads
from featcache.training.options import TrainingOptions


def sweep_recipes(
    cache: FeatureCache,
    recipes: Sequence[Recipe],
    *,
    seeds: int,
    runs_dir: Path,
    how: TrainingOptions | None = None,
    progress: SweepProgress | None = None,
    report: Report | None = None,
) -> Sweep:
    """Train the heads of recipes together: a row a recipe, every head tested, the best of each row written as a run.

    Args:
        cache: The features of all of them.
        recipes: At least one.
        seeds: How many heads each gets, with the seeds 0, 1, ...
        runs_dir: The folder that holds runs.
        how: Device, threads and memory.
        progress: Called with (epochs done, epochs in all).
        report: Called with a sentence about whatever was left out.

    Raises:
        KeyboardInterrupt: After a Ctrl-C before any head had finished an epoch.
        HeadError: No head could be trained.
    """
    return sweep_heads([cache], recipes_plan(recipes, seeds), how, runs_dir=runs_dir, progress=progress, report=report)


def recipes_plan(recipes: Sequence[Recipe], seeds: int) -> SweepPlan:
    """The plan of a sweep whose combinations are the heads of recipes."""
    return SweepPlan(
        combinations=tuple(Combination(values={"recipe": one.name}, config=one.head) for one in recipes),
        grid={"recipe": tuple(one.name for one in recipes)},
        seeds=tuple(range(seeds)),
        every=True,
    )


def reproductions(
    found: Sweep, recipes: Sequence[Recipe], cache: FeatureCache, *, report: Report | None = None
) -> tuple[Reproduction, ...]:
    """The rows of such a sweep beside the notebook's numbers, in the order of `recipes`.

    A recipe of which no head was trained, because of a Ctrl-C or because all diverged, is left out and reported.
    """
    weights = cache.provenance.get("weights")
    features = Features(
        set_name=cache.set_name,
        classes=tuple(cache.classes),
        images=found.images,
        weights=weights if isinstance(weights, str) else None,
    )
    rows = {row.values["recipe"]: row for row in found.rows}
    coming = [(one, Reproduction.of(one, rows[one.name], features) if one.name in rows else None) for one in recipes]
    tell(report, [f"no head of the recipe {recipe.name} was trained" for recipe, row in coming if row is None])
    return tuple(row for _, row in coming if row is not None)
