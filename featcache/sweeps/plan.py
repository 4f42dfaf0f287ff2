"""What a sweep will do, settled before anything is read: which heads, and which rows each of them sees.

Every combination of the grid is trained once a case: a seed, a fold, or a draw of a few images. Cases that have val
and the number of train rows in common make a round, whose heads can be trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, UnknownName
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import Cut, SplitRows
from featcache.rows.resampling import Fold, draw_cuts, fold_cuts
from featcache.rows.target import head_target
from featcache.sweeps.grid import Combination, Grid, combinations, seeds_of, written_grid
from featcache.sweeps.options import SweepOptions
from featcache.training.preparation import cut_of

DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The combinations, and how often each is trained.

    Attributes:
        combinations: The points of the grid.
        grid: The values of each option, as text.
        seeds: The seeds that each combination is trained with.
        folds: The number of folds; None for none.
        shots: Train images a class; empty for all.
        draws: Random draws for each of the shots.
        every: Whether each head is tested and the best of every combination becomes a run; else only the best of all.
    """

    combinations: tuple[Combination, ...]
    grid: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    folds: int | None = None
    shots: tuple[int, ...] = ()
    draws: int = DRAWS
    every: bool = False

    @classmethod
    def of(
        cls, given: Mapping[str, Any], grid: Grid, which: SweepOptions | None = None, *, caches: Sequence[str] = ()
    ) -> SweepPlan:
        """The plan for a grid, on top of the options of a HeadConfig that were given.

        `caches`: what the caches are called, where there are several. Raises UnknownName or InvalidOption.
        """
        which = which or SweepOptions()
        return cls(
            combinations=combinations(given, grid, caches),
            grid=written_grid(grid, caches),
            seeds=seeds_of(given, grid, which.seeds),
            folds=which.folds,
            shots=tuple(sorted(set(which.shots or ()))),
            draws=which.draws or DRAWS,
        )

    def for_caches(self, caches: Sequence[FeatureCache], beside: Sequence[FeatureCache] = ()) -> SweepPlan:
        """The plan for these caches: what was left to a default is filled in as their views ask for.

        Of several caches, each has the combinations whose layers it holds. Raises UnknownName for a layer that none
        holds, and what `HeadConfig.for_views` raises.
        """
        there = [_layer_names((cache, *beside)) for cache in caches]
        for name in (name for one in self.combinations for name in one.config.layers or ()):
            if not any(name in names for names in there):
                raise UnknownName("layer", name, set().union(*there))
        return replace(
            self,
            combinations=tuple(
                replace(one, config=one.config.for_views(caches[one.cache].spec.views))
                for one in self.combinations
                if len(caches) == 1 or there[one.cache].issuperset(one.config.layers or ())
            ),
        )

    def groups(self) -> dict[tuple[int, tuple[str, ...] | None], list[int]]:
        """The numbers of the combinations that read the same features, by cache and layers."""
        found: dict[tuple[int, tuple[str, ...] | None], list[int]] = {}
        for number, one in enumerate(self.combinations):
            found.setdefault((one.cache, one.config.layers), []).append(number)
        return found

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, for a checkpoint."""
        return {
            "combinations": [
                {"values": dict(one.values), "config": one.config.to_json(), "cache": one.cache}
                for one in self.combinations
            ],
            "grid": {name: list(values) for name, values in self.grid.items()},
            **{name: list(getattr(self, name)) for name in ("seeds", "shots")},
            **{name: getattr(self, name) for name in ("folds", "draws", "every")},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweepPlan:
        """The plan that `to_json` described. Raises KeyError or TypeError for anything else."""
        return cls(
            combinations=tuple(
                Combination(values=one["values"], config=HeadConfig.from_json(one["config"]), cache=one["cache"])
                for one in values["combinations"]
            ),
            grid={name: tuple(texts) for name, texts in values["grid"].items()},
            seeds=tuple(values["seeds"]),
            shots=tuple(values["shots"]),
            folds=values["folds"],
            draws=values["draws"],
            every=values["every"],
        )

    @property
    def first(self) -> HeadConfig:
        """The options of the first combination; what says which images are val is the same for all of them."""
        return self.combinations[0].config


def cache_names(caches: Sequence[FeatureCache]) -> tuple[str, ...]:
    """What to call each of several caches: their backbones where these differ, else their own names."""
    backbones = tuple(cache.spec.backbone for cache in caches)
    return backbones if len(set(backbones)) == len(caches) else tuple(cache.name for cache in caches)


def require_same_rows(caches: Sequence[FeatureCache], plan: SweepPlan) -> None:
    """Raises HeadError unless the same images are train, and the same are val, in all caches."""
    if len(caches) == 1:
        return
    first, *others = (_ids(cache, plan.first) for cache in caches)
    for cache, found in zip(caches[1:], others, strict=True):
        for part, ids in found.items():
            if ids != first.get(part):
                raise HeadError(
                    f"{caches[0].name} and {cache.name} differ in their {part} images, so heads on them cannot be "
                    "ranked",
                    hint="extract both from the same images: the same --dataset, --limit and --select-seed",
                )


def _ids(cache: FeatureCache, config: HeadConfig) -> dict[str, list[str]]:
    cut = cut_of(cache, config)
    parts = {"train": cut.train, "val": cut.val, "test": cut.test}
    return {
        name: list(cache[part.source].ids_at(part.rows)) if part is not None else [] for name, part in parts.items()
    }


def _layer_names(caches: Sequence[FeatureCache]) -> set[str]:
    return {name for cache in caches for layer in cache.layers for name in (layer, f"{cache.spec.backbone}/{layer}")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """The rows and the seed that a head is trained with. `fold` and `draw` are counted from 1."""

    seed: int
    cut: Cut
    fold: int | None = None
    draw: int | None = None
    held: SplitRows | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Cases with the same val rows and as many train rows. `shots`: images a class, None for all.

    `number`: counted from 0 through the rounds of a cache.
    """

    cases: tuple[Case, ...]
    shots: int | None = None
    number: int = 0


def rounds_of(cache: FeatureCache, plan: SweepPlan) -> tuple[Round, ...]:
    """The rounds of a plan. Raises HeadError for too few images, and what `cut_cache` raises."""
    return tuple(replace(one, number=number) for number, one in enumerate(_rounds(cache, plan)))


def _rounds(cache: FeatureCache, plan: SweepPlan) -> tuple[Round, ...]:
    if plan.folds is not None:
        folds = {seed: _folds(cache, plan, plan.folds, seed) for seed in plan.seeds}
        return tuple(
            Round(cases=(Case(seed=seed, cut=fold.cut, fold=fold.number, held=fold.held),))
            for seed, several in folds.items()
            for fold in several
        )
    cut = cut_of(cache, plan.first)
    if not plan.shots:
        return (Round(cases=tuple(Case(seed=seed, cut=cut) for seed in plan.seeds)),)
    (seed,) = plan.seeds
    # The most shots first: if the images are too few, it shows at once.
    drawn = {shots: draw_cuts(cut, shots, plan.draws, seed=seed) for shots in reversed(plan.shots)}
    return tuple(
        Round(
            shots=shots,
            cases=tuple(Case(seed=seed + number, cut=one, draw=number + 1) for number, one in enumerate(drawn[shots])),
        )
        for shots in plan.shots
    )


def _folds(cache: FeatureCache, plan: SweepPlan, count: int, seed: int) -> tuple[Fold, ...]:
    config = plan.first
    return fold_cuts(
        cache,
        count,
        seed=seed,
        val_fraction=config.val_fraction,
        val_seed=config.val_seed,
        target=head_target(cache, config.target),
        group=config.group,
    )
