"""The plan of a sweep, made before features are read: which heads are trained, and on which rows.

Every combination of the grid is trained once per case: a seed, a fold, or a few-shot draw. Cases with the same val rows
and the same number of train rows form a round; its heads can be trained in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError, UnknownName
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import Cut, SplitRows
from featcache.rows.options import ALL_LAYERS
from featcache.rows.resampling import Fold, draw_cuts, fold_cuts
from featcache.rows.target import head_target
from featcache.sweeps.grid import Combination, Grid, combinations, grid_texts, seeds_of
from featcache.sweeps.options import SweepOptions
from featcache.training.preparation import cut_of
from featcache.training.texts import has_text_encoder

DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The combinations, and how often each is trained.

    Attributes:
        combinations: The points of the grid.
        grid: The values of each option, as text.
        seeds: The seeds that each combination is trained with.
        folds: The number of folds; None for no folds.
        shots: Train images per class; empty for all.
        draws: Random draws for each value of `shots`.
        every: Whether all heads are evaluated on test, and the best head of every combination is written as a run; if
            not, only the best head of all.
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
        """The plan for a grid, with the `given` options of a HeadConfig for all heads.

        `caches`: the names of the caches, if there are several. Raises UnknownName or InvalidOption.
        """
        which = which or SweepOptions()
        return cls(
            combinations=combinations(given, grid, caches),
            grid=grid_texts(grid, caches),
            seeds=seeds_of(given, grid, which.seeds),
            folds=which.folds,
            shots=tuple(sorted(set(which.shots or ()))),
            draws=which.draws or DRAWS,
        )

    def for_caches(self, caches: Sequence[FeatureCache], beside: Sequence[FeatureCache] = ()) -> SweepPlan:
        """The plan for these caches: defaults that depend on augmented views are filled in.

        With several caches, combinations are left out whose layers are not in their cache, or whose head is made of
        texts that only the backbones of other caches encode. Raises UnknownName for a layer that no cache holds, and
        what `HeadConfig.for_views` raises.
        """
        there = [_layer_names((cache, *beside)) for cache in caches]
        texts = any(one.config.architecture.templates for one in self.combinations)
        encode = [texts and has_text_encoder(cache.spec) for cache in caches]
        for name in (name for one in self.combinations for name in one.config.layers or ()):
            if not any(name in names for names in there):
                raise UnknownName("layer", name, set().union(*there))
        return replace(
            self,
            combinations=tuple(
                replace(one, config=one.config.for_views(caches[one.cache].spec.views))
                for one in self.combinations
                if len(caches) == 1 or there[one.cache].issuperset(one.config.layers or ())
                if encode[one.cache] or not (one.config.architecture.templates and any(encode))
            ),
        )

    def groups(self) -> dict[tuple[int, tuple[str, ...] | None], list[int]]:
        """The indices of the combinations that read the same features, by cache and layers."""
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
        """The plan from the result of `to_json`. Raises KeyError or TypeError for anything else."""
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
        """The options of the first combination; the options that set the val images are the same for all."""
        return self.combinations[0].config


def cache_names(caches: Sequence[FeatureCache]) -> tuple[str, ...]:
    """A name for each of several caches: its backbone if all backbones differ, else the cache's name."""
    backbones = tuple(cache.spec.backbone for cache in caches)
    return backbones if len(set(backbones)) == len(caches) else tuple(cache.name for cache in caches)


def require_same_rows(caches: Sequence[FeatureCache], plan: SweepPlan) -> None:
    """Raise HeadError unless all caches have the same train, val and test images."""
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
    names = {name for cache in caches for layer in cache.layers for name in (layer, f"{cache.spec.backbone}/{layer}")}
    return names | set(ALL_LAYERS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """The rows and the seed that a head is trained with.

    `fold` and `draw` are counted from 1; None without folds or draws. `held`: the rows of the fold, held out.
    """

    seed: int
    cut: Cut
    fold: int | None = None
    draw: int | None = None
    held: SplitRows | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Cases with the same val rows and the same number of train rows.

    `shots`: train images per class, None for all. `number`: index among the rounds of a cache.
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
    # The most shots first, so that too few images fail at once.
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
