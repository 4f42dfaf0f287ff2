"""What came out of a recipe, beside what the notebook got, and whether the two agree.

Judged is the last epoch on val, as in the notebook, and the mean over the seeds: single seeds scatter by as much as
the agreement allows. Whatever makes the comparison unfair stands in place of a verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.heads.records import Score
from featcache.notebook.recipes import Recipe
from featcache.sweeps.records import SweepRow, TrialResult

# In accuracy, a fraction: 1.5 points.
TOLERANCE = 0.015
_IMAGES = {"train": 40_000, "val": 10_000}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the heads of several recipes were trained on.

    Attributes:
        set_name: The short name of the images.
        classes: The names of the classes.
        images: How many images each part has.
        weights: The source of the backbone's weights, as the cache records it; None where it has none.
    """

    set_name: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A recipe, and its heads.

    Attributes:
        recipe: The recipe.
        set_name: The short name of the images.
        results: Those of its heads, one a seed; at least one. Each has a score on val.
        doubts: Why they cannot be compared with the notebook, in sentences; empty where they can.
    """

    recipe: Recipe
    set_name: str
    results: tuple[TrialResult, ...]
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, row: SweepRow, features: Features) -> Reproduction | None:
        """From the row of a recipe in a sweep; None where none of its heads could be trained."""
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
        """Those of the heads."""
        return tuple(result.seed for result in self.results)

    @property
    def val(self) -> Score:
        """Mean over the seeds, of the best epoch on val."""
        return _mean_score([result.val for result in self.results])

    @property
    def last(self) -> Score:
        """Mean over the seeds, of the last epoch on val."""
        return _mean_score([result.last for result in self.results])

    @property
    def test(self) -> Score | None:
        """Mean over the seeds, of the best epoch on test; None where the set has no test images."""
        scores = [result.test for result in self.results]
        return _mean_score(scores) if any(scores) else None

    @property
    def epochs(self) -> float:
        """Mean over the seeds."""
        return self._mean(lambda result: result.epochs)

    @property
    def seconds(self) -> float:
        """Mean over the seeds, of each head's share of the training alone."""
        return self._mean(lambda result: result.seconds)

    @property
    def agrees(self) -> bool | None:
        """Whether `last` is within 1.5 points of the notebook's accuracy; None where that would say nothing."""
        return None if self.doubts else agreement(self.last.accuracy, self.recipe.notebook.accuracy)

    def to_json(self) -> dict[str, Any]:
        """One of the rows of `featcache reproduce --json`."""
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
    """Whether two accuracies (fractions) lie within 1.5 points of each other."""
    # Rounded, so that 0.5171 against 0.5021 is 1.5 points and not a little more.
    return round(abs(accuracy - notebook), 9) <= TOLERANCE


def comparison_doubts(recipe: Recipe, row: SweepRow, features: Features) -> tuple[str, ...]:
    """Why the heads of a recipe cannot be compared with the notebook, in sentences; none where they can."""
    return tuple(_doubts(recipe, row, features))


def _doubts(recipe: Recipe, row: SweepRow, features: Features) -> Iterator[str]:
    if features.classes != _CLASSES:
        yield "other classes than CIFAR-10's"
    images = {part: count for part, count in features.images.items() if part in _IMAGES}
    if images != _IMAGES:
        yield f"{_counted(images)} images, the notebook had {_counted(_IMAGES)}"
    if features.weights != recipe.weights:
        yield f"other weights than the notebook's: {_short(features.weights)}"
    diverged = sum(result.trouble is not None for result in row.heads)
    if diverged:
        yield f"{diverged} of {row.wanted} seeds diverged"
    if len(row.heads) < row.wanted or any(result.interrupted for result in row.heads):
        yield "interrupted"


def _counted(images: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {part}" for part, count in images.items())


def _short(weights: str | None) -> str:
    """A source without the folder it lies in, which means nothing on another machine."""
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
