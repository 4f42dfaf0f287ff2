"""Compares the results of a recipe with those of the notebook.

Compared is the accuracy of the last epoch on val, as in the notebook, as a mean over the seeds, because single seeds
vary by as much as the tolerance. If the comparison would be unfair, the reasons are given instead of a verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.display import Shown
from featcache.heads.records import Score
from featcache.notebook.recipes import Recipe
from featcache.sweeps.records import SweepRow, TrialResult

# In accuracy, a fraction: 1.5 points.
TOLERANCE = 0.015
_IMAGES = {"train": 40_000, "val": 10_000}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features that the heads of several recipes were trained on.

    Attributes:
        set_name: The short name of the image set.
        classes: The names of the classes.
        images: Number of images of each part.
        weights: The source of the backbone's weights, as the cache records it; None for a backbone without weights.
    """

    set_name: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    weights: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Reproduction(Shown):
    """The results of a recipe's heads.

    Attributes:
        recipe: The recipe.
        set_name: The short name of the image set.
        results: The results of its heads, one per seed, at least one; each has a score on val.
        doubts: The reasons why they cannot be compared with the notebook; empty if they can.
    """

    recipe: Recipe
    set_name: str
    results: tuple[TrialResult, ...]
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, row: SweepRow, features: Features) -> Reproduction | None:
        """The reproduction from a recipe's row in a sweep; None if none of its heads could be trained."""
        results = tuple(result for result in row.heads if result.val is not None)
        if not results:
            return None
        return cls(
            recipe=recipe,
            set_name=features.set_name,
            results=results,
            doubts=comparison_doubts(recipe, row, features),
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the heads."""
        return tuple(result.seed for result in self.results)

    @property
    def val(self) -> Score:
        """Mean score over the seeds, of the best epoch on val."""
        return _mean_score([result.val for result in self.results])

    @property
    def last(self) -> Score:
        """Mean score over the seeds, of the last epoch on val."""
        return _mean_score([result.last for result in self.results])

    @property
    def test(self) -> Score | None:
        """Mean score over the seeds, of the best epoch on test; None without test images."""
        scores = [result.test for result in self.results]
        return _mean_score(scores) if any(scores) else None

    @property
    def epochs(self) -> float:
        """Mean number of epochs over the seeds."""
        return self._mean(lambda result: result.epochs)

    @property
    def seconds(self) -> float:
        """Mean over the seeds of each head's share of the training time, in seconds."""
        return self._mean(lambda result: result.seconds)

    @property
    def agrees(self) -> bool | None:
        """Whether `last` is within 1.5 points of the notebook's accuracy; None if they cannot be compared."""
        return None if self.doubts else agreement(self.last.accuracy, self.recipe.notebook.accuracy)

    def to_json(self) -> dict[str, Any]:
        """One row of `featcache reproduce --json`."""
        test = self.test
        return {
            "recipe": self.recipe.name,
            "val": self.val.to_json(),
            "last": self.last.to_json(),
            "test": None if test is None else test.to_json(),
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "agrees": self.agrees,
            "seeds": [_seed_json(result) for result in self.results],
        }

    def _mean(self, value: Callable[[TrialResult], float]) -> float:
        # statistics.mean keeps whole numbers whole.
        return statistics.mean(map(value, self.results))


def agreement(accuracy: float, notebook: float) -> bool:
    """Whether two accuracies (fractions) differ by at most 1.5 points."""
    # Rounded, so that 0.5171 against 0.5021 is exactly 1.5 points.
    return round(abs(accuracy - notebook), 9) <= TOLERANCE


def comparison_doubts(recipe: Recipe, row: SweepRow, features: Features) -> tuple[str, ...]:
    """The reasons why the heads of a recipe cannot be compared with the notebook; empty if they can."""
    return tuple(_doubts(recipe, row, features))


def _doubts(recipe: Recipe, row: SweepRow, features: Features) -> Iterator[str]:
    if features.classes != _CLASSES:
        yield "other classes than CIFAR-10's"
    images = {part: count for part, count in features.images.items() if part in _IMAGES}
    if images != _IMAGES:
        yield f"{_counts_text(images)} images, the notebook had {_counts_text(_IMAGES)}"
    if features.weights != recipe.weights:
        yield f"other weights than the notebook's: {_short(features.weights)}"
    diverged = sum(result.trouble is not None for result in row.heads)
    if diverged:
        yield f"{diverged} of {row.wanted} seeds diverged"
    if len(row.heads) < row.wanted or any(result.interrupted for result in row.heads):
        yield "interrupted"


def _counts_text(images: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {part}" for part, count in images.items())


def _short(weights: str | None) -> str:
    """The source of weights without its folder, which is different on another machine."""
    kind, _, where = (weights or "none").partition(":")
    return where.replace("\\", "/").rpartition("/")[2] if kind == "file" else weights or kind


def _mean_score(scores: Sequence[Score | None]) -> Score:
    known = [score for score in scores if score is not None]
    return Score(
        value=statistics.fmean(score.accuracy for score in known),
        loss=statistics.fmean(score.loss for score in known),
    )


def _seed_json(result: TrialResult) -> dict[str, Any]:
    scores = {name: getattr(result, name) for name in ("val", "last", "test")}
    return {
        "seed": result.seed,
        **{name: None if score is None else score.to_json() for name, score in scores.items()},
        "epochs": result.epochs,
        "seconds": round(result.seconds, 3),
    }
