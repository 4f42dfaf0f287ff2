"""From what was measured to what a person wants to know: speed-ups, break-even, and what a formula says of them.

A way costs a setup, then for each head its epochs and a rest. End to end nothing is left over for the next head, so H
heads cost H times as much; cached, only the setup is shared.
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
    """What one way costs at the scenario's full size, in seconds.

    `setup_s`: once. `epoch_s`: an epoch of one head, val included. `rest_s`: what a head takes besides its epochs.
    `images_per_s`: train and val images through an epoch. `scaled`: measured on fewer images, and scaled by them.
    """

    setup_s: float
    epoch_s: float
    rest_s: float
    images_per_s: float
    scaled: bool

    def seconds(self, epochs: float, heads: int = 1) -> float:
        """From nothing to so many tested heads."""
        return self.setup_s + heads * (epochs * self.epoch_s + self.rest_s)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What caching gains over one baseline; every speed-up is that way's time over the cached way's.

    `warm_epoch`: an epoch, the cache present. `cold_one_head`, `cold_all_heads`: extraction included, for all epochs
    of one head and of all heads. `cold_one_pass`: the same, had end to end trained all heads in one pass, which it can
    where they are known beforehand. `predicted`: what E H t / (t + E H h) says of `cold_all_heads`, with t the
    baseline's epoch and h a cached one. `break_even_epochs`: where the lines of one head cross, None if they never do;
    `break_even_epoch`: the first epoch after which the cached way, extraction included, is ahead.
    `memory`: the baseline's peak over the warm one's; `memory_beyond_libraries`: without what the imports take.
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
    """`one_head_s`, `all_heads_s`: from nothing to tested heads; `scaled`, `multiplied`: how it is no measurement."""

    epoch_s: float
    images_per_s: float
    one_head_s: float
    all_heads_s: float
    scaled: bool
    multiplied: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """By way: what it takes. By baseline: what caching gains."""

    totals: Mapping[str, Total]
    comparisons: Mapping[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def summarised(result: Result) -> Summary:
    """All that follows from what was measured."""
    costs = {name: cost(result, name) for name in WAYS}
    return Summary(
        totals={name: _total(result, name, costs[name]) for name in WAYS},
        comparisons={name: _comparison(result, name, costs) for name in (NOTEBOOK, TUNED)},
    )


def cost(result: Result, name: str) -> Cost:
    """What a way costs at full size: measured, or scaled by images from what was measured."""
    way, full = result.ways[name], result.ways[WARM].images
    epochs = _seen(full) / _seen(way.images)
    epoch_s = statistics.median(way.epoch_s) * epochs
    end_to_end = name in (NOTEBOOK, TUNED)
    if end_to_end:
        test = full.get("test", 0) / max(way.images.get("test", 0), 1)
        setup_s, rest_s = way.setup_s, way.test_s * test
    else:
        # Cold and warm heads are the same work: what warm takes besides its epochs is opening, testing and writing.
        warm = result.ways[WARM]
        setup_s, rest_s = way.setup_s, max(0.0, warm.one_head_s - warm.setup_s - sum(warm.epoch_s))
    return Cost(
        setup_s=setup_s,
        epoch_s=epoch_s,
        rest_s=rest_s,
        images_per_s=_seen(full) / epoch_s,
        scaled=end_to_end and (dict(way.images) != dict(full) or len(way.epoch_s) < result.scenario.epochs),
    )


def predicted_speed_up(*, epochs: int, heads: int, forward_s: float, head_s: float) -> float:
    """E H t / (t + E H h): tends to E H, whatever the machine. `forward_s`: t, `head_s`: h, both of one epoch."""
    trainings = epochs * heads
    return trainings * forward_s / (forward_s + trainings * head_s)


def break_even(baseline: Cost, cold: Cost) -> float | None:
    """After how many epochs of one head both have taken the same time; None where cached epochs are no shorter.

    At most 0 where the cached way is ahead from the beginning.
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
        predicted=predicted_speed_up(
            epochs=scenario.epochs, heads=scenario.heads, forward_s=baseline.epoch_s, head_s=warm.epoch_s
        ),
        break_even_epochs=crossing,
        break_even_epoch=None if crossing is None else max(1, math.ceil(crossing)),
        memory=_held(result.ways[name]) / _held(result.ways[WARM]),
        memory_beyond_libraries=_held_beyond(result.ways[name]) / _held_beyond(result.ways[WARM]),
    )


def _seen(images: Mapping[str, int]) -> int:
    # What an epoch looks at.
    return images["train"] + images["val"]


def _held(way: Way) -> int:
    return way.memory.peak


def _held_beyond(way: Way) -> int:
    # A page at least: nothing is divided by zero where the imports were the peak.
    return max(4096, way.memory.peak - way.memory.libraries)
