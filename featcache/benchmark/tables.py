"""A result as Markdown tables: the times of each way, the gain of caching, and whether the heads are the same."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from featcache.benchmark.arithmetic import Summary, summarise
from featcache.benchmark.records import NOTEBOOK, TUNED, WARM, WAYS, Agreement, GrowthResult, Result, StreamingResult
from featcache.benchmark.wording import (
    TITLES,
    duration,
    how_it_was_scaled,
    megabytes,
    per_cent,
    rate,
    small,
    times,
    what_was_measured,
    where_it_was_measured,
)

_BASELINES = {NOTEBOOK: "the notebook's way", TUNED: "end to end with featcache's speed"}


def markdown(result: Result) -> str:
    """The whole page."""
    summary = summarise(result)
    paragraphs = [
        f"# Benchmark {result.scenario.name}: end to end against cached",
        f"{what_was_measured(result)} {where_it_was_measured(result.machine)}",
        times_table(result),
        how_it_was_scaled(result),
        "How many times faster:",
        gains_table(result, summary),
        _reading(result),
        "Is the head the same? End to end compared with cached training on the same images, steps and precision:",
        agreement_table(result.agreements),
        f"Made by `{result.command}`.",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def times_table(result: Result) -> str:
    """One row per way, with the columns of `time_header`, images per second and accuracy on val."""
    summary = summarise(result)
    return table(
        (*time_header(result), "images/s", "val"),
        [
            (*time_cells(result, summary, name), rate(summary.totals[name].images_per_s), _val(result, name))
            for name in WAYS
        ],
    )


def time_header(result: Result) -> tuple[str, ...]:
    """The columns: way, one epoch, all epochs of one head and of all heads, memory, accuracy on test."""
    scenario = result.scenario
    heads = (f"{scenario.heads} heads",) if scenario.heads > 1 else ()
    return ("", "an epoch", f"{scenario.epochs} epochs", *heads, "memory", "test")


def time_cells(result: Result, summary: Summary, name: str) -> tuple[str, ...]:
    """The row of one way, with the columns of `time_header`."""
    total, way = summary.totals[name], result.ways[name]
    heads = (_time_text(total.all_heads_s, total.scaled or total.multiplied),)
    return (
        TITLES[name],
        _time_text(total.epoch_s, total.scaled),
        _time_text(total.one_head_s, total.scaled),
        *(heads if result.scenario.heads > 1 else ()),
        megabytes(way.memory.peak),
        # An accuracy from fewer images would mislead: the agreement compares such heads.
        "-" if way.test_accuracy is None or not _saw_all(result, name) else per_cent(way.test_accuracy),
    )


def _time_text(seconds: float, scaled: bool) -> str:
    return ("≈ " if scaled else "") + duration(seconds)


def _val(result: Result, name: str) -> str:
    return per_cent(result.ways[name].val_accuracy) if _saw_all(result, name) else "-"


def _saw_all(result: Result, name: str) -> bool:
    return dict(result.ways[name].images) == dict(result.ways[WARM].images)


def gains_table(result: Result, summary: Summary) -> str:
    """One row per baseline, with every speed-up."""
    scenario = result.scenario
    header = (
        "over",
        "warm, an epoch",
        f"cold, {scenario.epochs} epochs",
        f"cold, {scenario.epochs} epochs x {scenario.heads} heads",
        "formula E H t / (t + E H h)",
        "cold, all heads in one pass",
        "ahead after epoch",
        "memory",
        "memory beyond libraries",
    )
    rows = [
        (
            _BASELINES[name],
            times(gain.warm_epoch),
            times(gain.cold_one_head),
            times(gain.cold_all_heads),
            times(gain.predicted),
            times(gain.cold_one_pass),
            "never" if gain.break_even_epoch is None else str(gain.break_even_epoch),
            times(gain.memory),
            times(gain.memory_beyond_libraries),
        )
        for name, gain in summary.comparisons.items()
    ]
    return table(header, rows)


def _reading(result: Result) -> str:
    scenario = result.scenario
    return (
        f"E = {scenario.epochs} epochs, H = {scenario.heads} heads, t: the baseline's epoch, h: a cached one. The "
        "measured figure is above the formula's where an extraction is faster than the baseline's epoch, and below "
        "where test images are extracted as well. All heads in one pass: what is left where the heads are known "
        "beforehand and end to end trains them side by side."
    )


def agreement_table(agreements: Sequence[Agreement]) -> str:
    """One row per baseline, with the differences between both trainings."""
    header = (
        "end to end",
        "computed, stored",
        "images, epochs",
        "greatest difference of a step's loss",
        "of a logit, relative",
        "same answers",
        "val",
        "test",
    )
    rows = [
        (
            _BASELINES[one.baseline],
            f"{one.precision}, {one.stored}",
            f"{sum(one.images.values()):,}, {one.epochs}",
            small(one.step_loss),
            small(one.logits),
            f"{one.same_answers:,} of {one.answers:,}",
            _both(one.val_accuracy),
            "-" if one.test_accuracy is None else _both(one.test_accuracy),
        )
        for one in agreements
    ]
    return table(header, rows)


def _both(pair: tuple[float, float]) -> str:
    return f"{per_cent(pair[0])} / {per_cent(pair[1])}"


# --- other kinds of results --------------------------------------------------------------------------------


def growth_header(result: GrowthResult) -> tuple[str, ...]:
    """The columns: the sizes, in images."""
    return ("an epoch of images", *(f"{size:,}" for size in sorted({point.images for point in result.points})))


def growth_cells(result: GrowthResult) -> list[tuple[str, ...]]:
    """One row per way, with the columns of `growth_header`."""
    rows = []
    for name in WAYS:
        points = sorted((point for point in result.points if point.way == name), key=lambda point: point.images)
        rows.append((TITLES[name], *(_time_text(point.seconds, point.scaled) for point in points)))
    return rows


def streaming_header() -> tuple[str, ...]:
    """The columns of the table of `bigger-than-memory`."""
    return ("features", "an epoch", "all of it", "memory", "beyond libraries", "val")


def streaming_cells(result: StreamingResult) -> list[tuple[str, ...]]:
    """One row for the training with features in memory, one for the streamed training."""
    return [
        (
            title,
            duration(statistics.median(way.epoch_s)),
            duration(way.all_heads_s),
            megabytes(way.memory.peak),
            megabytes(way.memory.peak - way.memory.libraries),
            per_cent(way.val_accuracy),
        )
        for title, way in (("in memory, no limit", result.resident), ("streamed, limited", result.streamed))
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
