"""What came out of a recipe, beside what the notebook got, and whether the two agree.

Judged is the last epoch on val, as in the notebook, and the mean over the seeds: single seeds scatter by as much as
the agreement allows. Whatever makes the comparison unfair is said instead of a verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.heads.records import Score
from featcache.notebook.recipes import Recipe
from featcache.runs.records import Training

# In accuracy, a fraction: 1.5 points.
TOLERANCE = 0.015
_IMAGES = {"train": 40_000, "val": 10_000}
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A recipe, one training per seed, and why they cannot be compared with the notebook (empty: they can).

    `set_name`: the short name of the images.
    """

    recipe: Recipe
    set_name: str
    seeds: tuple[int, ...]
    trainings: tuple[Training, ...]
    doubts: tuple[str, ...] = ()

    @property
    def val(self) -> Score:
        """Mean over the seeds, of the best epoch on val."""
        return _mean_score([training.val for training in self.trainings])

    @property
    def last(self) -> Score:
        """Mean over the seeds, of the last epoch on val."""
        return _mean_score([training.last for training in self.trainings])

    @property
    def test(self) -> Score | None:
        """Mean over the seeds, of the best epoch on test; None where the set has no test images."""
        scores = [training.test for training in self.trainings if training.test is not None]
        return _mean_score(scores) if scores else None

    @property
    def epochs(self) -> float:
        """Mean over the seeds."""
        return self._mean(lambda training: training.epochs)

    @property
    def seconds(self) -> float:
        """Mean over the seeds, of the fit alone."""
        return self._mean(lambda training: training.seconds)

    @property
    def interrupted(self) -> bool:
        """Whether somebody pressed Ctrl-C during the last training."""
        return self.trainings[-1].interrupted

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
            "seeds": [_seed_json(seed, one) for seed, one in zip(self.seeds, self.trainings, strict=True)],
        }

    def _mean(self, value: Callable[[Training], float]) -> float:
        # statistics.mean keeps whole numbers whole.
        return statistics.mean(value(training) for training in self.trainings)


def agreement(accuracy: float, notebook: float) -> bool:
    """Whether two accuracies (fractions) lie within 1.5 points of each other."""
    # Rounded, so that 0.5171 against 0.5021 is 1.5 points and not a little more.
    return round(abs(accuracy - notebook), 9) <= TOLERANCE


def comparison_doubts(
    recipe: Recipe, trainings: Sequence[Training], *, classes: Sequence[str], weights: str | None
) -> tuple[str, ...]:
    """Why trainings of `recipe` cannot be compared with the notebook, as sentences; none where they can.

    `weights`: the source of the backbone's weights, as the cache records it.
    """
    return tuple(_doubts(recipe, trainings, classes, weights))


def _doubts(
    recipe: Recipe, trainings: Sequence[Training], classes: Sequence[str], weights: str | None
) -> Iterator[str]:
    if tuple(classes) != _CLASSES:
        yield "other classes than CIFAR-10's"
    images = {part: count for part, count in trainings[0].images.items() if part in _IMAGES}
    if images != _IMAGES:
        yield f"{_counted(images)} images, the notebook had {_counted(_IMAGES)}"
    if weights != recipe.weights:
        yield f"other weights than the notebook's: {_short(weights)}"
    if any(training.interrupted for training in trainings):
        yield "interrupted"


def _counted(images: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {part}" for part, count in images.items())


def _short(weights: str | None) -> str:
    """A source without the folder it lies in, which means nothing to whoever reads the table elsewhere."""
    kind, _, where = (weights or "none").partition(":")
    return where.replace("\\", "/").rpartition("/")[2] if kind == "file" else weights or kind


def _mean_score(scores: Sequence[Score]) -> Score:
    return Score(
        value=statistics.fmean(score.accuracy for score in scores),
        loss=statistics.fmean(score.loss for score in scores),
    )


def _seed_json(seed: int, training: Training) -> dict[str, Any]:
    return {
        "seed": seed,
        "val": training.val.to_json(),
        "last": training.last.to_json(),
        "test": None if training.test is None else training.test.to_json(),
        "epochs": training.epochs,
        "seconds": round(training.seconds, 3),
    }
