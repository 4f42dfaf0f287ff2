"""The records of a benchmark's results, and their conversion to and from JSON. Imports neither torch nor charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featcache.benchmark.scenarios import Scenario
from featcache.display import Shown

NOTEBOOK, TUNED, COLD, WARM = "notebook", "tuned", "cold", "warm"
WAYS = (NOTEBOOK, TUNED, COLD, WARM)
"""End to end as in a notebook; end to end with featcache's speed; cached with extraction; cached without extraction."""

RESULT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the process of a way, in bytes.

    `peak`: the maximum. `libraries`: after its imports. `device`: the maximum allocated on a CUDA device; None without
    one.
    """

    peak: int
    libraries: int
    device: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A training, epoch by epoch. `step_losses`: the loss of every step, before the update; () if not recorded."""

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    step_losses: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False)
class Way(Shown):
    """The measurement of one way; nothing here is scaled.

    Attributes:
        name: The way.
        images: Number of images of train, val and test.
        setup_s: Seconds before the first epoch. End to end: loading (and compiling) the network. Cold: the extraction.
            Warm: 0.
        epoch_s: Seconds of every epoch of the first head, with val.
        test_s: Seconds to evaluate test once; 0 if that was not timed separately.
        heads_s: Pairs (number of finished heads, seconds since the beginning), without imports; the first pair is for
            one head.
        val_accuracy, test_accuracy: Of the first head's best epoch; fractions.
        curve: The first head's training.
        memory: Memory of the process.
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
        """Seconds from the beginning to the first head's score on test."""
        return self.heads_s[0][1]

    @property
    def all_heads_s(self) -> float:
        """Seconds from the beginning to the last head's score on test."""
        return self.heads_s[-1][1]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Way:
        """The way from JSON values of `dataclasses.asdict`."""
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
    """The comparison of one end-to-end way with cached training on the same images, epochs and precision.

    Attributes:
        baseline: The end-to-end way.
        precision: The precision of the backbone's computation.
        stored: The dtype of the cache.
        images: Number of images of train, val and test.
        epochs: Number of epochs.
        step_loss: The greatest difference between the losses of the same step.
        logits: The greatest difference between two logits after training, divided by the greatest logit.
        same_answers: The number of val and test images with the same predicted class in both.
        answers: The number of val and test images.
        val_accuracy, test_accuracy: Fractions, end to end first.
        cached: The cached training.
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
        """The agreement from JSON values of `dataclasses.asdict`."""
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
    """The cache of a benchmark: its size `cache_bytes`, values per row `feature_dim`, and how they were computed."""

    layer: str
    feature_dim: int
    precision: str
    runner: str
    stored: str
    weights: str
    cache_bytes: int
    extract_images_per_s: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(Shown):
    """The result of a benchmark.

    Attributes:
        command: The command that made it.
        machine: Processor, cores, device, versions, date.
        scenario: What was measured.
        features: The cache.
        ways: The measurement of each way, by name.
        agreements: The comparisons of end-to-end and cached training.
    """

    command: str
    machine: Mapping[str, Any]
    scenario: Scenario
    features: Features
    ways: Mapping[str, Way]
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert the result to JSON values.

        Returns:
            The measurements, and under "summary" the speed-ups and totals computed from them.
        """
        from featcache.benchmark.arithmetic import summarise

        return {
            "format": RESULT_FORMAT,
            "command": self.command,
            "machine": dict(self.machine),
            "scenario": self.scenario.to_json() | {"scaled": self.scenario.scaled},
            "summary": summarise(self).to_json(),
            "features": asdict(self.features),
            "ways": {name: asdict(way) for name, way in self.ways.items()},
            "agreements": [asdict(one) for one in self.agreements],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Result:
        """Read a result from JSON values.

        Args:
            values: The result of `to_json`. Its "summary" is ignored and computed again when needed.

        Returns:
            The result.

        Raises:
            KeyError, TypeError: Values that `to_json` did not make.
        """
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
    """The time of one way at one size.

    `seconds`: one epoch; for cold, the extraction and one epoch. `scaled`: not measured, but scaled from the largest
    measured size.
    """

    way: str
    images: int
    seconds: float
    scaled: bool


@dataclass(frozen=True, kw_only=True, repr=False)
class GrowthResult(Shown):
    """The result of the scenario `growth`: the times of all ways at all sizes."""

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
        """The result from the JSON values of `to_json`."""
        return cls(
            command=values["command"],
            machine=values["machine"],
            scenario=Scenario.from_json(values["scenario"]),
            points=tuple(Point(**point) for point in values["points"]),
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class StreamingResult(Shown):
    """The result of the scenario `bigger-than-memory`.

    `limit_bytes`: memory that a training may allocate beyond its libraries. `resident`: all features in memory, without
    the limit. `streamed`: features streamed, under the limit. `resident_fails`: the error of keeping all features in
    memory under the limit.
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
