"""What a benchmark measured, as records that become JSON and come back. No torch, no drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featcache.benchmark.scenarios import Scenario

NOTEBOOK, TUNED, COLD, WARM = "notebook", "tuned", "cold", "warm"
WAYS = (NOTEBOOK, TUNED, COLD, WARM)
"""End to end as a notebook does it, end to end with featcache's own speed, cached without and with the cache."""

RESULT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The most memory a way's process held, in bytes; `libraries`: what it held after its imports.

    `device`: the most that was allocated on a CUDA device, None without one.
    """

    peak: int
    libraries: int
    device: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A training, epoch by epoch; `step_losses`: the loss of every step before it was taken, () where not kept."""

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    step_losses: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one way went, as it was measured; nothing here is scaled.

    `images`: how many of train, val and test it saw. `setup_s`: before the first epoch; end to end it loads (and
    compiles) the network, cold it extracts, warm it has nothing to do. `epoch_s`: every epoch of the first head, val
    included. `test_s`: one look at test, where that was timed alone. `heads_s`: how many heads
    were there when, in seconds from the beginning, imports aside; the first pair is that of one head.
    `val_accuracy`, `test_accuracy`: the first head's best epoch; fractions.
    """

    name: str
    images: Mapping[str, int]
    setup_s: float
    epoch_s: tuple[float, ...]
    test_s: float
    heads_s: tuple[tuple[int, float], ...]
    val_accuracy: float
    test_accuracy: float | None
    curve: Curve
    memory: Memory

    @property
    def one_head_s(self) -> float:
        """From the beginning to the first head's score on test."""
        return self.heads_s[0][1]

    @property
    def all_heads_s(self) -> float:
        """From the beginning to the last head's score on test."""
        return self.heads_s[-1][1]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Way:
        """The way that `dataclasses.asdict` made JSON of."""
        return cls(
            **{
                **values,
                "epoch_s": tuple(values["epoch_s"]),
                "heads_s": tuple((heads, seconds) for heads, seconds in values["heads_s"]),
                "curve": _curve(values["curve"]),
                "memory": Memory(**values["memory"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One way end to end against cached training of the same precision on the same images and epochs.

    `images`: train, val and test. `step_loss`: the greatest difference of two losses of the same step. `logits`: the
    greatest difference of two logits after training, over the greatest logit. `same_answers`: how many of the val
    and test images get the same class from both, of `answers`. Accuracies are fractions, end to end first.
    """

    baseline: str
    precision: str
    stored: str
    images: Mapping[str, int]
    epochs: int
    step_loss: float
    logits: float
    same_answers: int
    answers: int
    val_accuracy: tuple[float, float]
    test_accuracy: tuple[float, float] | None
    cached: Curve

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Agreement:
        """The agreement that `dataclasses.asdict` made JSON of."""
        test = values["test_accuracy"]
        return cls(
            **{
                **values,
                "val_accuracy": tuple(values["val_accuracy"]),
                "test_accuracy": None if test is None else tuple(test),
                "cached": _curve(values["cached"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the cache holds: `cache_bytes` of `feature_dim` values a row, and how they were computed."""

    layer: str
    feature_dim: int
    precision: str
    runner: str
    stored: str
    weights: str
    cache_bytes: int
    extract_images_per_s: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole benchmark: what was measured, on what machine, by which command.

    `machine`: processor, cores, versions, date.
    """

    command: str
    machine: Mapping[str, Any]
    scenario: Scenario
    features: Features
    ways: Mapping[str, Way]
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values: what was measured, and under "summary" what follows from it."""
        from featcache.benchmark.arithmetic import summarised

        return {
            "format": RESULT_FORMAT,
            "command": self.command,
            "machine": dict(self.machine),
            "scenario": self.scenario.to_json() | {"scaled": self.scenario.scaled},
            "summary": summarised(self).to_json(),
            "features": asdict(self.features),
            "ways": {name: asdict(way) for name, way in self.ways.items()},
            "agreements": [asdict(one) for one in self.agreements],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Result:
        """The result that `to_json` described; what follows from it is computed anew."""
        scenario = {name: value for name, value in values["scenario"].items() if name != "scaled"}
        return cls(
            command=values["command"],
            machine=values["machine"],
            scenario=Scenario.from_json(scenario),
            features=Features(**values["features"]),
            ways={name: Way.from_json(way) for name, way in values["ways"].items()},
            agreements=tuple(map(Agreement.from_json, values["agreements"])),
        )


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way at one size. `seconds`: an epoch; cold: the extraction and one epoch. `scaled`: from the largest that
    was measured.
    """

    way: str
    images: int
    seconds: float
    scaled: bool


@dataclass(frozen=True, kw_only=True)
class GrowthResult:
    """The points of all ways, by way and size."""

    command: str
    machine: Mapping[str, Any]
    scenario: Scenario
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            "format": RESULT_FORMAT,
            **asdict(self),
            "scenario": self.scenario.to_json(),
            "points": [asdict(point) for point in self.points],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GrowthResult:
        """The result that `to_json` described."""
        return cls(
            command=values["command"],
            machine=values["machine"],
            scenario=Scenario.from_json(values["scenario"]),
            points=tuple(Point(**point) for point in values["points"]),
        )


@dataclass(frozen=True, kw_only=True)
class StreamingResult:
    """`limit_bytes`: what a training was allowed beyond its libraries. `resident`: without the limit, features in
    memory; `streamed`: under it. `resident_fails`: how holding all features ended under the limit.
    """

    command: str
    machine: Mapping[str, Any]
    scenario: Scenario
    features: Features
    limit_bytes: int
    resident: Way
    streamed: Way
    resident_fails: str

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {"format": RESULT_FORMAT, **asdict(self), "scenario": self.scenario.to_json()}


def _curve(values: Mapping[str, Any]) -> Curve:
    return Curve(**{name: tuple(numbers) for name, numbers in values.items()})
