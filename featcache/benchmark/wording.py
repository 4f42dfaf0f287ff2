"""The texts of a shown result: names of the ways, formats of numbers, and sentences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.benchmark.arithmetic import summarise
from featcache.benchmark.records import COLD, NOTEBOOK, TUNED, WARM, Agreement, GrowthResult, Result, StreamingResult
from featcache.benchmark.scenarios import Scenario

TITLES = {
    NOTEBOOK: "end to end, notebook's way",
    TUNED: "end to end, featcache's speed",
    COLD: "cached, extraction included",
    WARM: "cached, cache present",
}


def duration(seconds: float) -> str:
    """0.0432 -> "0.043 s", 75 -> "75 s", 4000 -> "67 min", 40000 -> "11.1 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def times(factor: float) -> str:
    """12.34 -> "12", 2.345 -> "2.3", 1234.5 -> "1,234"."""
    return f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"


def rate(images_per_s: float) -> str:
    """Images a second."""
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.1f}"


def megabytes(count: int) -> str:
    """1_234_567_890 -> "1,235 MB"."""
    return f"{count / 1e6:,.0f} MB"


def per_cent(share: float) -> str:
    """0.7125 -> "71.2 %"."""
    return f"{100 * share:.1f} %"


def small(difference: float) -> str:
    """1.234e-6 -> "1.2e-06"; 0 -> "0"."""
    return f"{difference:.1e}" if difference else "0"


# Two heads are the same if no logits differ by more than this, relative to the greatest logit.
SAME_LOGITS = 1e-3
INTRODUCTION = (
    "A small classifier (a head) is trained on top of a large network that stays as it is. End to end runs that "
    "network in every step; featcache runs it once, stores its outputs (features), and trains on those."
)


def what_was_measured(result: Result) -> str:
    """One sentence: images, backbone, head, epochs, machine."""
    scenario, features, images = result.scenario, result.features, result.ways[WARM].images
    size = f" at {scenario.image_size}x{scenario.image_size}" if scenario.image_size else ""
    untrained = ", untrained" if features.weights.startswith("random:") else ""
    return (
        f"{sum(images.values()):,} images of {Path(scenario.dataset).name} ({images['train']:,} to train on, "
        f"{images['val']:,} to choose by, {images.get('test', 0):,} to test on); {scenario.backbone}{size}{untrained}, "
        f"{features.feature_dim:,} features; head {scenario.head.head}; {_cores(result.machine)}."
    )


def how_it_was_scaled(result: Result, *, heads: bool = True) -> str | None:
    """The meaning of the mark ≈; None if everything was measured. `heads`: whether times of all heads are shown."""
    scenario, reasons = result.scenario, []
    if scenario.scaled:
        images = sum(result.ways[NOTEBOOK].images.values())
        reasons.append(f"measured on {images:,} images and {scenario.sampled_epochs} epochs, scaled by images")
    if heads and scenario.heads > 1:
        reasons.append(f"one head's time, {scenario.heads} times")
    return f"≈ {'; '.join(reasons)}." if reasons else None


def findings(result: Result) -> list[str]:
    """The findings, in sentences that need no knowledge of feature caches."""
    gains = summarise(result).comparisons
    notebook, tuned = gains[NOTEBOOK], gains[TUNED]
    exact = next(one for one in result.agreements if one.baseline == NOTEBOOK)
    heads = f"{result.scenario.heads} heads" if result.scenario.heads > 1 else "one head"
    return [
        f"With the cache there, an epoch is {times(notebook.warm_epoch)} times faster than the notebook's and "
        f"{times(tuned.warm_epoch)} times faster than end to end at its best.",
        f"With the extraction counted, {heads} of {result.scenario.epochs} epochs take "
        f"{times(notebook.cold_all_heads)} and {times(tuned.cold_all_heads)} times less; it pays "
        f"{_from_when(notebook.break_even_epoch)}, against the best {_from_when(tuned.break_even_epoch)}.",
        f"{_verdict(exact)}: {exact.same_answers:,} of {exact.answers:,} answers agree, no step's loss differs by "
        f"more than {small(exact.step_loss)}.",
    ]


def _verdict(agreement: Agreement) -> str:
    same = agreement.same_answers == agreement.answers and agreement.logits <= SAME_LOGITS
    return "The head is the same" if same else "The heads are NOT the same"


def _from_when(epoch: int | None) -> str:
    return "never" if epoch is None else f"after epoch {epoch}"


def scenario_text(scenario: Scenario) -> str:
    """One sentence each on the purpose and the settings of a scenario that does not compare the four ways."""
    size = f" at {scenario.image_size}x{scenario.image_size}" if scenario.image_size else ""
    about = f"{scenario.about[:1].upper()}{scenario.about[1:]}"
    return f"{about}. {scenario.backbone}{size}, {scenario.images:,} images, head {scenario.head.head}."


def where_it_was_measured(machine: Mapping[str, Any]) -> str:
    """Cores, device, torch and date, as a sentence."""
    return f"On {_cores(machine)}, device {machine['device']}, torch {machine['versions']['torch']}, {machine['date']}."


def _cores(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['processor']}"


def growth_findings(result: GrowthResult) -> tuple[str, ...]:
    """How much faster a cached epoch is at the smallest and at the largest size."""
    sizes = sorted({point.images for point in result.points})
    known = {(point.way, point.images): point for point in result.points}
    gains = [
        f"{times(known[name, size].seconds / known[WARM, size].seconds)} at {size:,} images"
        for name in (NOTEBOOK,)
        for size in dict.fromkeys((sizes[0], sizes[-1]))
    ]
    scaled = any(point.scaled for point in result.points)
    return (
        f"A cached epoch is shorter than the notebook's by a factor of {' and '.join(gains)}.",
        f"{TITLES[COLD]}: the extraction and one epoch."
        + (" ≈ scaled by images from the largest size measured." if scaled else ""),
    )


def streaming_findings(result: StreamingResult) -> tuple[str, ...]:
    """Whether the training fitted into the memory limit, how much slower it was, and whether the head is the same."""
    slower = statistics.median(result.streamed.epoch_s) / statistics.median(result.resident.epoch_s)
    losses = zip(result.streamed.curve.val_loss, result.resident.curve.val_loss, strict=True)
    apart = small(max(abs(streamed - resident) for streamed, resident in losses))
    return (
        f"The cache has {megabytes(result.features.cache_bytes)}; a training may allocate "
        f"{megabytes(result.limit_bytes)} beyond its libraries. Streamed it fits, and an epoch takes {slower:.2f} "
        "times as long as with all features in memory.",
        f"The head is the same: no epoch's loss on val differs by more than {apart}.",
        f"All features in memory under the same limit: {result.resident_fails}",
    )
