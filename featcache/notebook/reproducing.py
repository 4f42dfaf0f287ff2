"""Trains the notebook's recipes as a sweep over their heads, on the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache.cache.reader import FeatureCache
from featcache.notebook.recipes import Recipe
from featcache.notebook.reproduction import Features, Reproduction
from featcache.rows.notes import Report, report_notes
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
    """Train the heads of recipes in one sweep, with one row per recipe.

    All heads are evaluated on test, and the best head of each row is written as a run.

    Args:
        cache: The features for all recipes.
        recipes: At least one recipe.
        seeds: Number of heads per recipe, with the seeds 0, 1, ...
        runs_dir: The folder that holds runs.
        how: Device, threads and memory; None for the defaults.
        progress: Called with (epochs done, epochs in total).
        report: Called with a sentence about anything that was left out.

    Returns:
        The sweep.

    Raises:
        KeyboardInterrupt: Ctrl-C came before any head had finished an epoch.
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
    """Compare the rows of a sweep of recipes with the notebook's numbers, in the order of `recipes`.

    A recipe without a trained head, because of Ctrl-C or because all diverged, is left out and reported.
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
    report_notes(report, [f"no head of the recipe {recipe.name} was trained" for recipe, row in coming if row is None])
    return tuple(row for _, row in coming if row is not None)
