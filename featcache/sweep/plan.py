"""What a sweep will do, settled before anything is read: which heads, and which rows each of them sees.

Every combination of the grid is trained once a case: a seed, a fold, or a draw of a few images. Cases that have val
and the number of train rows in common make a round, whose heads can be trained side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption
from featcache.heads.config import HeadConfig
from featcache.rows.cuts import Cut, SplitRows, cut_cache
from featcache.rows.resampling import draw_cuts, fold_cuts
from featcache.sweep.grid import Combination, Grid, combinations, seeds_of, written_grid

DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The combinations, and how often each is trained. `shots`: empty for all train images; `folds`: None for none.

    Raises InvalidOption for numbers that cannot be used or that exclude each other.
    """

    combinations: tuple[Combination, ...]
    grid: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    folds: int | None = None
    shots: tuple[int, ...] = ()
    draws: int = DRAWS

    def __post_init__(self) -> None:
        if self.folds is not None:
            _require_whole("--folds", self.folds, 2)
        for shots in self.shots:
            _require_whole("--shots", shots, 1)
        _require_whole("--draws", self.draws, 1)
        if self.folds is not None and self.shots:
            raise InvalidOption("--folds and --shots are two ways to choose train images", hint="take one of them")
        if self.shots and len(self.seeds) > 1:
            raise InvalidOption(
                "with --shots every draw has a seed of its own, and --seeds would do nothing", hint="more --draws"
            )

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        grid: Grid,
        *,
        seeds: int = 1,
        folds: int | None = None,
        shots: Sequence[int] = (),
        draws: int | None = None,
    ) -> SweepPlan:
        """The plan for the `options` of a HeadConfig and a grid. Raises UnknownName or InvalidOption."""
        if draws is not None and not shots:
            raise InvalidOption("--draws belongs to --shots, and there are none", hint="--shots 1,5,10")
        return cls(
            combinations=combinations(options, grid),
            grid=written_grid(grid),
            seeds=seeds_of(options, grid, seeds),
            folds=folds,
            shots=tuple(sorted(set(shots))),
            draws=DRAWS if draws is None else draws,
        )

    def for_views(self, views: int) -> SweepPlan:
        """The plan for a cache with so many views of each train image. Raises what `HeadConfig.for_views` raises."""
        return replace(
            self, combinations=tuple(replace(one, config=one.config.for_views(views)) for one in self.combinations)
        )

    @property
    def first(self) -> HeadConfig:
        """The options of the first combination; what says which images are val is the same for all of them."""
        return self.combinations[0].config


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
    """Cases with the same val rows and as many train rows. `shots`: images a class, None for all."""

    cases: tuple[Case, ...]
    shots: int | None = None


def rounds_of(cache: FeatureCache, plan: SweepPlan) -> tuple[Round, ...]:
    """The rounds of a plan. Raises HeadError for too few images, and what `cut_cache` raises."""
    fraction, val_seed = plan.first.val_fraction, plan.first.val_seed
    if plan.folds is not None:
        folds = {
            seed: fold_cuts(cache, plan.folds, seed=seed, val_fraction=fraction, val_seed=val_seed)
            for seed in plan.seeds
        }
        return tuple(
            Round(cases=(Case(seed=seed, cut=fold.cut, fold=fold.number, held=fold.held),))
            for seed, several in folds.items()
            for fold in several
        )
    cut = cut_cache(cache, val_fraction=fraction, val_seed=val_seed)
    if not plan.shots:
        return (Round(cases=tuple(Case(seed=seed, cut=cut) for seed in plan.seeds)),)
    (seed,) = plan.seeds
    # The most shots first: if the images are too few, it shows at once.
    drawn = {shots: draw_cuts(cache, cut, shots, plan.draws, seed=seed) for shots in reversed(plan.shots)}
    return tuple(
        Round(
            shots=shots,
            cases=tuple(Case(seed=seed + number, cut=one, draw=number + 1) for number, one in enumerate(drawn[shots])),
        )
        for shots in plan.shots
    )


def _require_whole(option: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"expected {option} to be a whole number of at least {least}, got {value!r}")
