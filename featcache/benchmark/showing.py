"""Shows a result: one sentence, one table with bars, and notes; the same as a Markdown page and as an SVG chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.benchmark.result import (
    COLD,
    NOTEBOOK,
    SAME_LOGITS,
    SAME_POINTS,
    TUNED,
    WARM,
    WAYS,
    Agreement,
    Result,
    Total,
    summarise,
)
from featcache.text import human_count

TITLES = {
    NOTEBOOK: "in every epoch, as in a notebook",
    TUNED: "in every epoch, featcache's speed",
    COLD: "once per image (cold)",
    WARM: "not at all, outputs kept (warm)",
}
_BAR = 12


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


def speed_up(factor: float) -> str:
    """2.345 -> "2.3 times faster", 0.5 -> "2.0 times slower"."""
    return f"{times(factor)} times faster" if factor >= 1 else f"{times(1 / factor)} times slower"


def sentence(result: Result) -> str:
    """The gain of the first head, extraction included, over end to end at the same speed, and that of further heads."""
    summary = summarise(result)
    tuned, gain = summary.totals[TUNED], summary.comparisons[TUNED]
    return (
        f"Keeping the outputs of {result.options.name}, instead of computing them in each of {result.options.epochs} "
        f"epochs, trained a first classifier {speed_up(gain.cold_one_head)} "
        f"({duration(summary.totals[COLD].one_head_s)} instead of {_one_head(tuned)}, {result.options.name} equally "
        f"fast in both) and each further one {speed_up(gain.warm_one_head)} "
        f"({duration(summary.totals[WARM].one_head_s)})."
    )


def notes(result: Result) -> list[str]:
    """What was measured, when the cache pays, whether the heads are the same, and the meaning of the mark."""
    options, gain = result.options, summarise(result).comparisons[TUNED]
    pays = "never pays" if gain.break_even_epoch is None else f"pays from epoch {gain.break_even_epoch} on"
    return [
        what_was_measured(result),
        f"E = {options.epochs} epochs, H = {human_count(options.heads, 'classifier')}: "
        f"{speed_up(gain.cold_all_heads)} in all; for one, keeping outputs {pays}.",
        # Rounding in a cache may change the outputs; it is worth a line where it changes the accuracy.
        *(same_heads(one) for one in result.agreements if one.baseline == NOTEBOOK or one.points > SAME_POINTS),
        *how_it_was_scaled(result),
    ]


def what_was_measured(result: Result) -> str:
    """Images, backbone, head and machine, as one sentence."""
    options, images = result.options, result.ways[WARM].images
    size = f" at {options.image_size}x{options.image_size}" if options.image_size else ""
    test = images.get("test", 0)
    tested = f"{test:,} to test on" if test else 'none to test on, so "correct" is of those to choose by'
    untrained = " (untrained)" if result.features.weights.startswith("random:") else ""
    return (
        f"{images['train']:,} images of {Path(options.dataset).name} to learn from, {images['val']:,} to choose by, "  # type: ignore[arg-type]
        f"{tested}; {options.name}{untrained}{size}; classifier {options.head.head}; "
        f"{result.machine['cores']} cores of {result.machine['processor']}."
    )


def same_heads(agreement: Agreement) -> str:
    """Whether the head that was trained end to end is the head from the cache."""
    how, points = f"({agreement.precision}, stored as {agreement.stored})", f"{agreement.points:.1f}"
    if agreement.baseline == TUNED:
        return f"Rounded features {how}: outputs differ by {agreement.logits:.0e}, accuracy by {points} points."
    return (
        f"{'The same' if agreement.same else 'NOT the same'} classifier either way: outputs differ by "
        f"{agreement.logits:.0e} ({SAME_LOGITS:g} allowed), accuracy by {points} points ({SAME_POINTS} allowed)."
    )


def how_it_was_scaled(result: Result) -> list[str]:
    """The meaning of the mark ≈; nothing if everything was measured."""
    total, reasons = summarise(result).totals[NOTEBOOK], []
    if total.scaled:
        images = sum(result.ways[NOTEBOOK].images.values())
        reasons.append(f"from {images:,} images and {result.options.sampled_epochs} epochs, scaled by images")
    if total.multiplied:
        reasons.append(f"one classifier's time x {result.options.heads}")
    return [f"≈ {'; '.join(reasons)}."] if reasons else []


# --- the table and the chart -------------------------------------------------------------------------------


def header(result: Result) -> tuple[str, ...]:
    """The columns of `cells`."""
    every = (f"all {result.options.heads}",) if result.options.heads > 1 else ()
    return ("the network runs", "1 classifier", *every, "correct")


def cells(result: Result, name: str) -> tuple[str, ...]:
    """The row of one way: until one head and all heads are tested, and the share of correct predictions."""
    total, way = summarise(result).totals[name], result.ways[name]
    every = (_all_heads(total),) if result.options.heads > 1 else ()
    # An accuracy from fewer images would mislead: the agreements compare such heads.
    share = way.test_accuracy if way.test_accuracy is not None else way.val_accuracy
    correct = "-" if dict(way.images) != dict(result.ways[WARM].images) else f"{100 * share:.1f} %"
    return (TITLES[name], _one_head(total), *every, correct)


def bar(result: Result, name: str) -> str:
    """A bar as long as the time of all heads; the longest has 12 characters."""
    totals = summarise(result).totals
    share = totals[name].all_heads_s / max(total.all_heads_s for total in totals.values())
    return "█" * round(_BAR * share) or "▏"


def _one_head(total: Total) -> str:
    return ("≈ " if total.scaled else "") + duration(total.one_head_s)


def _all_heads(total: Total) -> str:
    return ("≈ " if total.scaled or total.multiplied else "") + duration(total.all_heads_s)


def markdown_table(result: Result) -> str:
    """The table as Markdown, with an epoch's time and the memory."""
    totals = summarise(result).totals
    rows = [
        (
            *cells(result, name),
            ("≈ " if totals[name].scaled else "") + duration(totals[name].epoch_s),
            f"{(result.ways[name].memory['peak'] or 0) / 1e6:,.0f} MB",
        )
        for name in WAYS
    ]
    return _markdown((*header(result), "an epoch", "memory"), rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ("---", *("---:" for _ in columns[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(result: Result) -> str:
    """The result as a Markdown page."""
    summary, options = summarise(result), result.options
    gains = [
        f"Over {'the notebook' if name == NOTEBOOK else 'end to end at the same speed'}: an epoch "
        f"{speed_up(gain.warm_epoch)} (warm); all {options.heads} heads {speed_up(gain.cold_all_heads)} (cold), "
        f"{times(gain.predicted)} by the formula E H t / (t + E H h) with t = {summary.totals[name].epoch_s:.3g} s and "
        f"h = {summary.totals[WARM].epoch_s:.3g} s per epoch."
        for name, gain in summary.comparisons.items()
    ]
    heads = [same_heads(one) for one in result.agreements]
    paragraphs = [
        f"# Benchmark {options.scenario}",
        sentence(result),
        markdown_table(result),
        "\n".join(f"- {line}" for line in dict.fromkeys([*notes(result), *gains, *heads])),
        f"Made by `{result.command}`, torch {result.machine['versions']['torch']}, {result.machine['date']}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def files(result: Result, name: str = "benchmark") -> dict[str, bytes]:
    """The result as JSON, as a Markdown page and as an SVG chart, by file name."""
    text = json.dumps(result.to_json(), indent=1) + "\n"
    made = {"json": text.encode(), "md": page(result).encode(), "svg": chart_svg(result)}
    return {f"{name}.{kind}": content for kind, content in made.items()}


def chart_svg(result: Result) -> bytes:
    """The bars of the four ways, until one head and all heads are tested; pale ones are scaled."""
    # Both take a second to import.
    import altair as alt
    import vl_convert

    rows = chart_rows(result)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("way:N", sort=list(TITLES.values()), title=None, axis=alt.Axis(labelLimit=300))
    )
    bars = base.mark_bar(height={"band": 0.7}, color="#2a7ab8").encode(
        x=alt.X("seconds:Q", axis=None),
        opacity=alt.Opacity("measured:N", scale=alt.Scale(domain=[True, False], range=[1.0, 0.5]), legend=None),
    )
    labels = base.mark_text(align="left", dx=5).encode(x="seconds:Q", text="label:N")
    until = alt.Row(
        "until:N",
        sort=list(dict.fromkeys(row["until"] for row in rows)),
        title=None,
        header=alt.Header(labelOrient="top", labelAnchor="start", labelFontWeight="bold"),
    )
    chart = (
        alt.layer(bars, labels)
        .properties(width=460, height=alt.Step(26))
        .facet(row=until)
        .resolve_scale(x="independent")
        .properties(
            title=alt.TitleParams("The network runs ...", subtitle=what_was_measured(result), anchor="start", offset=12)
        )
        .configure(background="white", padding=14, font="sans-serif", view=alt.ViewConfig(stroke=None))
    )
    text: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return text.encode()


def chart_rows(result: Result) -> list[dict[str, Any]]:
    """The bars: `way`, `until` (first or all heads), `seconds`, `label`, and whether it was measured."""
    options, rows = result.options, []
    for name, total in summarise(result).totals.items():
        one = (f"first classifier, {options.epochs} epochs", total.one_head_s, _one_head(total))
        every = (f"all {options.heads} classifiers", total.all_heads_s, _all_heads(total))
        for until, seconds, label in (one, every) if options.heads > 1 else (one,):
            rows.append({
                "way": TITLES[name], "until": until, "seconds": seconds, "label": label, "measured": label[0] != "≈"
            })  # fmt: skip
    return rows
