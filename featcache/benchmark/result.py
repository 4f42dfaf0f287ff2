"""What a benchmark measured, as records and as JSON, and the speed-ups that follow. Imports neither torch nor charts.

The cost of a way is its setup, then for each head its epochs and a rest. End to end, nothing can be reused for the next
head, so H heads cost H times as much; from a cache, all heads share the setup, which is the extraction.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from featcache.benchmark.options import BenchmarkOptions
from featcache.display import Shown

NOTEBOOK, TUNED, COLD, WARM = "notebook", "tuned", "cold", "warm"
WAYS = (NOTEBOOK, TUNED, COLD, WARM)
"""End to end as in a notebook; end to end at featcache's speed; from a cache with extraction; from a cache without."""

RESULT_FORMAT = 1
# Two heads are the same if no logits differ by more than this, relative to the greatest logit, ...
SAME_LOGITS = 1e-3
# ... and no accuracy by more than this, in percentage points.
SAME_POINTS = 0.2


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
        heads_s: Pairs (number of finished heads, seconds since the beginning), without imports.
        val_accuracy, test_accuracy: Of the first head's best epoch; fractions.
        memory: Bytes of its process: `peak`; `libraries`, after the imports; `device`, of a CUDA device or None.
    """

    name: str
    images: Mapping[str, int]
    setup_s: float
    epoch_s: tuple[float, ...]
    test_s: float
    heads_s: tuple[tuple[int, float], ...]
    val_accuracy: float
    test_accuracy: float | None
    memory: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The comparison of an end-to-end way with the same training from a cache: same images, epochs and precision.

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

    @property
    def points(self) -> float:
        """The greatest difference of an accuracy, in percentage points."""
        pairs = [pair for pair in (self.val_accuracy, self.test_accuracy) if pair is not None]
        return 100 * max(abs(first - second) for first, second in pairs)

    @property
    def same(self) -> bool:
        """Whether both heads are the same within SAME_LOGITS and SAME_POINTS."""
        return self.logits <= SAME_LOGITS and self.points <= SAME_POINTS


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
        options: What was measured.
        features: The cache.
        ways: The measurement of each way, by name.
        agreements: The comparisons of both end-to-end ways with training from a cache.
    """

    command: str
    machine: Mapping[str, Any]
    options: BenchmarkOptions
    features: Features
    ways: Mapping[str, Way]
    agreements: tuple[Agreement, ...]

    def to_json(self) -> dict[str, Any]:
        """The measurements as JSON values, and under "summary" what was computed from them."""
        return {
            "format": RESULT_FORMAT,
            "command": self.command,
            "machine": dict(self.machine),
            "scenario": self.options.to_json(),
            "summary": asdict(summarise(self)),
            "features": asdict(self.features),
            "ways": {name: asdict(way) for name, way in self.ways.items()},
            "agreements": [asdict(one) for one in self.agreements],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Result:
        """The result from the JSON values of `to_json`; "summary" is computed again. Raises KeyError, TypeError."""
        return cls(
            command=values["command"],
            machine=values["machine"],
            options=BenchmarkOptions.from_json(values["scenario"]),
            features=_record(Features, values["features"]),
            ways={name: _record(Way, way) for name, way in values["ways"].items()},
            agreements=tuple(_record(Agreement, one) for one in values["agreements"]),
        )


def _record(kind: Any, values: Mapping[str, Any]) -> Any:
    # JSON has lists where a record has tuples.
    return kind(**{field.name: _as_tuples(values[field.name]) for field in fields(kind)})


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


# --- what follows from the measurements --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The seconds of one way at full size: `setup_s` once, each head `rest_s` and `epoch_s` for each epoch with val.

    `scaled`: measured on fewer images or epochs, and scaled by the number of images.
    """

    setup_s: float
    epoch_s: float
    rest_s: float
    scaled: bool

    def seconds(self, epochs: float, heads: int = 1) -> float:
        """The time until `heads` heads of `epochs` epochs are trained and evaluated on test, with the setup."""
        return self.setup_s + heads * (epochs * self.epoch_s + self.rest_s)


@dataclass(frozen=True, kw_only=True)
class Total:
    """The times of one way at full size.

    `images_per_s`: train and val images per second of an epoch. `one_head_s`, `all_heads_s`: until the heads are
    evaluated on test, with the setup. `scaled`: scaled by the number of images. `multiplied`: one head's time
    multiplied by the number of heads. If either is true, it is no measurement.
    """

    epoch_s: float
    images_per_s: float
    one_head_s: float
    all_heads_s: float
    scaled: bool
    multiplied: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gain of a cache over one baseline. Each speed-up is the baseline's time divided by the time with a cache.

    Attributes:
        cold_one_head: Of all epochs of one head, extraction included.
        cold_all_heads: Of all epochs of all heads, extraction included.
        warm_one_head: Of all epochs of one head, with the cache present.
        warm_epoch: Of one epoch, with the cache present.
        predicted: The formula E H t / (t + E H h) for `cold_all_heads`, which tends to E H on any machine; t: an epoch
            of the baseline, h: one from the cache.
        break_even_epoch: The first epoch of one head after which the cache, extraction included, is faster; None if it
            never is.
    """

    cold_one_head: float
    cold_all_heads: float
    warm_one_head: float
    warm_epoch: float
    predicted: float
    break_even_epoch: int | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The times of each of the four ways, and the gain of a cache over each of the two baselines."""

    totals: Mapping[str, Total]
    comparisons: Mapping[str, Comparison]


def summarise(result: Result) -> Summary:
    """Compute totals and speed-ups."""
    costs = {name: cost(result, name) for name in WAYS}
    totals = {name: _total(result, name, costs[name]) for name in WAYS}
    return Summary(
        totals=totals, comparisons={name: _compare(result.options, totals, costs, name) for name in (NOTEBOOK, TUNED)}
    )


def cost(result: Result, name: str) -> Cost:
    """The cost of a way at full size: measured, or scaled by the number of images."""
    way, warm = result.ways[name], result.ways[WARM]
    epoch_s = statistics.median(way.epoch_s) * _epoch_images(warm.images) / _epoch_images(way.images)
    if name in (NOTEBOOK, TUNED):
        rest_s = way.test_s * warm.images.get("test", 0) / max(way.images.get("test", 0), 1)
        fewer = dict(way.images) != dict(warm.images) or len(way.epoch_s) < result.options.epochs
        return Cost(setup_s=way.setup_s, epoch_s=epoch_s, rest_s=rest_s, scaled=fewer)
    # Cold and warm heads are the same work; outside its epochs, warm opens the cache, evaluates test and writes.
    rest_s = max(0.0, warm.heads_s[0][1] - warm.setup_s - sum(warm.epoch_s))
    return Cost(setup_s=way.setup_s, epoch_s=epoch_s, rest_s=rest_s, scaled=False)


def break_even_epochs(baseline: Cost, cold: Cost) -> float | None:
    """The epochs of one head after which both took the same time; None if epochs from the cache are not shorter.

    At most 0 if the cache is faster from the beginning.
    """
    gained = baseline.epoch_s - cold.epoch_s
    if gained <= 0:
        return None
    return (cold.setup_s + cold.rest_s - baseline.setup_s - baseline.rest_s) / gained


def formula_speed_up(*, epochs: int, heads: int, forward_s: float, head_s: float) -> float:
    """The speed-up E H t / (t + E H h). `forward_s`: t, `head_s`: h, seconds per epoch."""
    trainings = epochs * heads
    return trainings * forward_s / (forward_s + trainings * head_s)


def _total(result: Result, name: str, cost: Cost) -> Total:
    options, way, cold = result.options, result.ways[name], result.ways[COLD]
    end_to_end = name in (NOTEBOOK, TUNED)
    if end_to_end:
        one, every = cost.seconds(options.epochs), cost.seconds(options.epochs, options.heads)
    else:
        one, every = way.heads_s[0][1], cold.heads_s[-1][1] - (0.0 if name == COLD else cold.setup_s)
    return Total(
        epoch_s=cost.epoch_s,
        images_per_s=_epoch_images(result.ways[WARM].images) / cost.epoch_s,
        one_head_s=one,
        all_heads_s=every,
        scaled=cost.scaled,
        multiplied=end_to_end and options.heads > 1,
    )


def _compare(
    options: BenchmarkOptions, totals: Mapping[str, Total], costs: Mapping[str, Cost], name: str
) -> Comparison:
    baseline, cold, warm = totals[name], totals[COLD], totals[WARM]
    crossing = break_even_epochs(costs[name], costs[COLD])
    return Comparison(
        cold_one_head=baseline.one_head_s / cold.one_head_s,
        cold_all_heads=baseline.all_heads_s / cold.all_heads_s,
        warm_one_head=baseline.one_head_s / warm.one_head_s,
        warm_epoch=baseline.epoch_s / warm.epoch_s,
        predicted=formula_speed_up(
            epochs=options.epochs, heads=options.heads, forward_s=baseline.epoch_s, head_s=warm.epoch_s
        ),
        break_even_epoch=None if crossing is None else max(1, math.ceil(crossing)),
    )


def _epoch_images(images: Mapping[str, int]) -> int:
    # An epoch reads train and val.
    return images["train"] + images["val"]
