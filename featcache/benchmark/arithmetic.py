"""Computes speed-ups and break-even points from measured times, and the speed-up that a formula predicts.

The cost of a way is its setup, then for each head its epochs and a rest. End to end, nothing can be reused for the next
head, so H heads cost H times as much; cached, all heads share the setup.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, WAYS, Result, Way


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one way at the scenario's full size, in seconds.

    `setup_s`: once. `epoch_s`: one epoch of one head, with val. `rest_s`: the time of a head outside its epochs.
    `images_per_s`: train and val images per second of an epoch. `scaled`: measured on fewer images, and scaled by their
    number.
    """

    setup_s: float
    epoch_s: float
    rest_s: float
    images_per_s: float
    scaled: bool

    def seconds(self, epochs: float, heads: int = 1) -> float:
        """The time until `heads` heads of `epochs` epochs are trained and evaluated on test, with the setup."""
        return self.setup_s + heads * (epochs * self.epoch_s + self.rest_s)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The gain of caching over one baseline. Each speed-up is the baseline's time divided by the cached way's time.

    Attributes:
        warm_epoch: Of one epoch, with the cache present.
        cold_one_head: Of all epochs of one head, extraction included.
        cold_all_heads: Of all epochs of all heads, extraction included.
        cold_one_pass: Like `cold_all_heads`, if end to end trained all heads in one pass, which is possible when they
            are known beforehand.
        predicted: The formula E H t / (t + E H h) for `cold_all_heads`; t: an epoch of the baseline, h: a cached one.
        break_even_epochs: The number of epochs at which the times of one head are equal; None if they never are.
        break_even_epoch: The first epoch after which the cached way, extraction included, is faster.
        memory: Peak memory of the baseline over that of the warm way.
        memory_beyond_libraries: The same, without the memory of the imports.
    """

    warm_epoch: float
    cold_one_head: float
    cold_all_heads: float
    cold_one_pass: float
    predicted: float
    break_even_epochs: float | None
    break_even_epoch: int | None
    memory: float
    memory_beyond_libraries: float


@dataclass(frozen=True, kw_only=True)
class Total:
    """The times of one way at full size.

    `one_head_s`, `all_heads_s`: until the heads are evaluated on test, with the setup. `scaled`: scaled by the number
    of images. `multiplied`: one head's time multiplied by the number of heads. If either is true, it is no measurement.
    """

    epoch_s: float
    images_per_s: float
    one_head_s: float
    all_heads_s: float
    scaled: bool
    multiplied: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The times of each way, and for each baseline the gain of caching."""

    totals: Mapping[str, Total]
    comparisons: Mapping[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values.

        `totals` has the times of each of the four ways, `comparisons` the gain over each of the two baselines.
        """
        return asdict(self)


def summarise(result: Result) -> Summary:
    """Compute the summary of a result."""
    costs = {name: cost(result, name) for name in WAYS}
    return Summary(
        totals={name: _total(result, name, costs[name]) for name in WAYS},
        comparisons={name: _comparison(result, name, costs) for name in (NOTEBOOK, TUNED)},
    )


def cost(result: Result, name: str) -> Cost:
    """The cost of a way at full size: measured, or scaled by the number of images."""
    way, full = result.ways[name], result.ways[WARM].images
    epochs = _epoch_images(full) / _epoch_images(way.images)
    epoch_s = statistics.median(way.epoch_s) * epochs
    end_to_end = name in (NOTEBOOK, TUNED)
    if end_to_end:
        test = full.get("test", 0) / max(way.images.get("test", 0), 1)
        setup_s, rest_s = way.setup_s, way.test_s * test
    else:
        # Cold and warm heads are the same work; outside its epochs, warm opens the cache, evaluates test and writes.
        warm = result.ways[WARM]
        setup_s, rest_s = way.setup_s, max(0.0, warm.one_head_s - warm.setup_s - sum(warm.epoch_s))
    return Cost(
        setup_s=setup_s,
        epoch_s=epoch_s,
        rest_s=rest_s,
        images_per_s=_epoch_images(full) / epoch_s,
        scaled=end_to_end and (dict(way.images) != dict(full) or len(way.epoch_s) < result.scenario.epochs),
    )


def formula_speed_up(*, epochs: int, heads: int, forward_s: float, head_s: float) -> float:
    """The speed-up E H t / (t + E H h), which tends to E H on any machine. `forward_s`: t, `head_s`: h, per epoch."""
    trainings = epochs * heads
    return trainings * forward_s / (forward_s + trainings * head_s)


def break_even(baseline: Cost, cold: Cost) -> float | None:
    """The number of epochs of one head after which both took the same time; None if cached epochs are not shorter.

    At most 0 if the cached way is faster from the beginning.
    """
    gained = baseline.epoch_s - cold.epoch_s
    if gained <= 0:
        return None
    return (cold.setup_s + cold.rest_s - baseline.setup_s - baseline.rest_s) / gained


def _total(result: Result, name: str, cost: Cost) -> Total:
    scenario, way = result.scenario, result.ways[name]
    end_to_end = name in (NOTEBOOK, TUNED)
    if end_to_end:
        one, everything = cost.seconds(scenario.epochs), cost.seconds(scenario.epochs, scenario.heads)
    else:
        cold = result.ways[COLD]
        one, everything = way.one_head_s, cold.all_heads_s - (0.0 if name == COLD else cold.setup_s)
    return Total(
        epoch_s=cost.epoch_s,
        images_per_s=cost.images_per_s,
        one_head_s=one,
        all_heads_s=everything,
        scaled=cost.scaled,
        multiplied=end_to_end and scenario.heads > 1,
    )


def _comparison(result: Result, name: str, costs: Mapping[str, Cost]) -> Comparison:
    scenario, baseline, cold, warm = result.scenario, costs[name], result.ways[COLD], costs[WARM]
    everything = cold.all_heads_s
    crossing = break_even(baseline, costs[COLD])
    return Comparison(
        warm_epoch=baseline.epoch_s / warm.epoch_s,
        cold_one_head=baseline.seconds(scenario.epochs) / cold.one_head_s,
        cold_all_heads=baseline.seconds(scenario.epochs, scenario.heads) / everything,
        cold_one_pass=baseline.seconds(scenario.epochs) / everything,
        predicted=formula_speed_up(
            epochs=scenario.epochs, heads=scenario.heads, forward_s=baseline.epoch_s, head_s=warm.epoch_s
        ),
        break_even_epochs=crossing,
        break_even_epoch=None if crossing is None else max(1, math.ceil(crossing)),
        memory=_peak(result.ways[name]) / _peak(result.ways[WARM]),
        memory_beyond_libraries=_peak_beyond_libraries(result.ways[name]) / _peak_beyond_libraries(result.ways[WARM]),
    )


def _epoch_images(images: Mapping[str, int]) -> int:
    # An epoch reads train and val.
    return images["train"] + images["val"]


def _peak(way: Way) -> int:
    return way.memory.peak


def _peak_beyond_libraries(way: Way) -> int:
    # At least one page, to avoid a division by zero if the imports were the peak.
    return max(4096, way.memory.peak - way.memory.libraries)
