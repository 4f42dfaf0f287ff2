"""The charts of a report as Altair specifications, for the page and for papers.

`drawing` adds the colours of lines and text, for a light or dark page, or for print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from featcache.heads.metric_records import Bin
from featcache.report.run_results import RunResult

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart
Rows = list[dict[str, Any]]

SERIES: Final = ("#4269d0", "#e8871e", "#3ca951", "#d94f70", "#7c5cd6", "#2a9d9d", "#9c6b4e", "#8a8f98")
"""Colours of series: distinct on white and on black, and with most kinds of colour blindness."""

WIDTH: Final = 330
LARGEST_MATRIX: Final = 40
"""The most classes of a confusion matrix that is still readable."""


def accuracies(results: Sequence[RunResult]) -> Chart:
    """The accuracy of every run with its 95 % interval."""
    rows = [
        {
            "run": one.name,
            "accuracy": one.measured.accuracy,
            "low": one.measured.accuracy_interval[0],
            "high": one.measured.accuracy_interval[1],
        }
        for one in results
    ]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("run:N", title=None, sort=None, axis=alt.Axis(labelLimit=150)), color=_FIRST
    )
    interval = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="accuracy, 95 % interval", axis=_PER_CENT, scale=alt.Scale(zero=False, nice=True)),
        x2="high:Q",
    )
    return _with_size(
        interval + base.mark_point(filled=True, size=70, opacity=1).encode(x="accuracy:Q"),
        WIDTH - 110,
        max(60, 26 * len(rows)),
    )


def accuracy_by_epoch(results: Sequence[RunResult]) -> Chart:
    """Val accuracy of each run by epoch; only of trained heads, because solved heads have no epochs."""
    rows = [
        {"run": one.name, "epoch": record.epoch, "val accuracy": record.val_score}
        for one in results
        for record in one.history
    ]
    chart = (
        alt.Chart(_data(rows))
        .mark_line(point=_points(rows), interpolate="linear")
        .encode(
            x=_epochs(rows),
            y=alt.Y("val accuracy:Q", axis=_PER_CENT, scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", sort=None, legend=_LEGEND),
        )
    )
    return _with_size(chart, WIDTH, 220)


def learning_curve(result: RunResult) -> Chart:
    """Loss on train and val by epoch, with a mark at the epoch that was kept."""
    rows = [
        {"epoch": record.epoch, "loss": value, "of": part}
        for record in result.history
        for part, value in (("train", record.train_loss), ("val", record.val_loss))
        # knn has no train loss.
        if value == value
    ]
    lines = (
        alt.Chart(_data(rows))
        .mark_line(point=_points(rows))
        .encode(
            x=_epochs(rows),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color("of:N", sort=None, legend=_LEGEND),
        )
    )
    kept = [{"epoch": result.run.training.best_epoch, "what": "kept"}]
    rule = alt.Chart(_data(kept)).mark_rule(strokeDash=[4, 4]).encode(x="epoch:Q")
    words = (
        alt.Chart(_data(kept)).mark_text(align="left", dx=4, dy=6, baseline="top").encode(x="epoch:Q", text="what:N")
    )
    return _with_size(lines + rule + words.encode(y=alt.value(0)), WIDTH, 220)


def candidates(result: RunResult) -> Chart:
    """Val accuracy of each candidate of a solved head, in the order of evaluation."""
    rows = [
        {"candidate": record.candidate or str(record.epoch), "val accuracy": record.val_score}
        for record in result.history
    ]
    chart = (
        alt.Chart(_data(rows))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=alt.X("val accuracy:Q", axis=_PER_CENT, scale=alt.Scale(zero=False)),
            y=alt.Y("candidate:N", title=None, sort=None),
            color=_FIRST,
        )
    )
    return _with_size(chart, WIDTH - 90, max(80, 22 * len(rows)))


def reliability_diagram(result: RunResult) -> Chart:
    """Accuracy by confidence, before and after scaling with the temperature chosen on val."""
    scaled = f"temperature {result.measured.temperature:.2f}"
    rows = [
        *_reliability_rows(result.measured.bins, "not scaled"),
        *_reliability_rows(result.measured.scaled_bins, scaled),
    ]
    x = alt.X("confidence:Q", title="confidence", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("accuracy:Q", title="accuracy", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1]))
    diagonal = alt.Chart(_data([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
    lines = (
        alt.Chart(_data(rows))
        .mark_line(point={"filled": True, "size": 45})
        .encode(x=x, y=y, color=alt.Color("probabilities:N", sort=None, legend=_LEGEND), order="confidence:Q")
    )
    return _with_size(diagonal.mark_line(strokeDash=[4, 4], strokeWidth=1).encode(x=x, y=y) + lines, WIDTH, 260)


def confusion(result: RunResult) -> Chart:
    """The confusion matrix: the share of each class by predicted class."""
    counts, classes = result.measured.confusion or (), result.run.classes
    rows = [
        {"class": classes[row], "predicted": classes[column], "images": count, "share": count / max(1, sum(line))}
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
    ]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("predicted:N", title="predicted", sort=None, axis=alt.Axis(labelAngle=-45, orient="top")),
        y=alt.Y("class:N", title="class", sort=None),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("share:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1]))
    )
    numbers = base.mark_text(fontSize=11).encode(
        text="images:Q", color=alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
    )
    size = max(WIDTH, 34 * len(classes))
    return _with_size(cells + numbers, size, size)


def recalls(result: RunResult) -> Chart:
    """The recall of each class, the best first."""
    pairs = zip(result.run.classes, result.measured.recall, strict=True)
    rows = [{"class": name, "recall": value} for name, value in pairs if value is not None]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=alt.X("recall:Q", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", title=None, sort="-x"),
            color=_FIRST,
        )
    )
    return _with_size(chart, WIDTH - 110, max(60, 20 * len(rows)))


def feature_map(positions: Sequence[tuple[int, int]], classes: Sequence[str], titles: Sequence[str]) -> Chart:
    """The map of features, one point per image, coloured by class; `titles`: of both axes."""
    rows = [{"x": x, "y": y, "class": name} for (x, y), name in zip(positions, classes, strict=True)]
    axis = alt.Axis(labels=False, ticks=False, grid=False)
    chart = (
        alt.Chart(_data(rows))
        .mark_circle(size=14, opacity=0.6)
        .encode(
            x=alt.X("x:Q", title=titles[0], axis=axis),
            y=alt.Y("y:Q", title=titles[1], axis=axis),
            color=alt.Color("class:N", sort=sorted(set(classes)), legend=_LEGEND),
        )
    )
    return _with_size(chart, 2 * WIDTH, 2 * WIDTH)


def benchmark(bars: Sequence[Mapping[str, Any]]) -> Chart:
    """Seconds to the first and to all tested heads of each setup, from bars of `setup`, `what` and `seconds`."""
    chart = (
        alt.Chart(_data(list(map(dict, bars))))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("seconds:Q", scale=alt.Scale(type="log"), title="seconds (logarithmic)"),
            y=alt.Y("setup:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color("what:N", sort=None, legend=_LEGEND),
            shape=alt.Shape("what:N", sort=None, legend=_LEGEND),
        )
    )
    return _with_size(chart, WIDTH - 150, 150)


def _reliability_rows(bins: Sequence[Bin], name: str) -> Rows:
    # A bin of very few images is a meaningless spike.
    least = min(10.0, sum(one.images for one in bins) / 50)
    return [
        {"confidence": one.confidence, "accuracy": one.accuracy, "images": one.images, "probabilities": name}
        for one in bins
        if one.images >= least
    ]


def _data(rows: Rows) -> dict[str, Rows]:
    return {"values": rows}


def _with_size(chart: Chart, width: int, height: int) -> Chart:
    sized: Chart = chart.properties(width=width, height=height)
    return sized


def _epochs(rows: Rows) -> alt.X:
    last = max((row["epoch"] for row in rows), default=1)
    # Ticks at whole epochs only, even if there are few.
    return alt.X("epoch:Q", title="epoch", axis=alt.Axis(format="d", tickCount=min(last, 8), tickMinStep=1))


def _points(rows: Rows) -> bool:
    return max((row["epoch"] for row in rows), default=1) <= 25


_PER_CENT: Final = alt.Axis(format="%")
_LEGEND: Final = alt.Legend(orient="bottom", title=None, columns=2, labelLimit=220)
_FIRST: Final = alt.value(SERIES[0])
