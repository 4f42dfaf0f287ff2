"""What is drawn: each chart as Altair's description, for the page and for papers alike.

`drawing` gives lines and words their colour, for a page that is light or dark, or for print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import altair as alt

from featcache.heads.metric_records import Bin
from featcache.report.subjects import Subject

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart
Rows = list[dict[str, Any]]

SERIES: Final = ("#4269d0", "#e8871e", "#3ca951", "#d94f70", "#7c5cd6", "#2a9d9d", "#9c6b4e", "#8a8f98")
"""Colours of series: told apart on white and on black, and by most who see colours differently."""

WIDTH: Final = 330
LARGEST_MATRIX: Final = 40
"""Classes of a confusion matrix that can still be read."""


def accuracies(subjects: Sequence[Subject]) -> Chart:
    """Every run's accuracy with its 95 % interval."""
    rows = [
        {
            "run": one.name,
            "accuracy": one.measured.accuracy,
            "low": one.measured.accuracy_interval[0],
            "high": one.measured.accuracy_interval[1],
        }
        for one in subjects
    ]
    base = alt.Chart(_data(rows)).encode(
        y=alt.Y("run:N", title=None, sort=None, axis=alt.Axis(labelLimit=150)), color=_FIRST
    )
    interval = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="accuracy, 95 % interval", axis=_PER_CENT, scale=alt.Scale(zero=False, nice=True)),
        x2="high:Q",
    )
    return _sized(
        interval + base.mark_point(filled=True, size=70, opacity=1).encode(x="accuracy:Q"),
        WIDTH - 110,
        max(60, 26 * len(rows)),
    )


def accuracy_by_epoch(subjects: Sequence[Subject]) -> Chart:
    """Val accuracy of each run, epoch by epoch; of trained heads alone, for solved ones have no epochs."""
    rows = [
        {"run": one.name, "epoch": record.epoch, "val accuracy": record.val_score}
        for one in subjects
        for record in one.history
    ]
    drawn = (
        alt.Chart(_data(rows))
        .mark_line(point=_points(rows), interpolate="linear")
        .encode(
            x=_epochs(rows),
            y=alt.Y("val accuracy:Q", axis=_PER_CENT, scale=alt.Scale(zero=False)),
            color=alt.Color("run:N", sort=None, legend=_LEGEND),
        )
    )
    return _sized(drawn, WIDTH, 220)


def learning_curve(subject: Subject) -> Chart:
    """Loss on train and val by epoch, and which epoch was kept."""
    rows = [
        {"epoch": record.epoch, "loss": value, "of": part}
        for record in subject.history
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
    kept = [{"epoch": subject.run.training.best_epoch, "what": "kept"}]
    rule = alt.Chart(_data(kept)).mark_rule(strokeDash=[4, 4]).encode(x="epoch:Q")
    words = (
        alt.Chart(_data(kept)).mark_text(align="left", dx=4, dy=6, baseline="top").encode(x="epoch:Q", text="what:N")
    )
    return _sized(lines + rule + words.encode(y=alt.value(0)), WIDTH, 220)


def candidates(subject: Subject) -> Chart:
    """Val accuracy of each candidate of a head that is solved, in the order in which they were tried."""
    rows = [
        {"candidate": record.candidate or str(record.epoch), "val accuracy": record.val_score}
        for record in subject.history
    ]
    drawn = (
        alt.Chart(_data(rows))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=alt.X("val accuracy:Q", axis=_PER_CENT, scale=alt.Scale(zero=False)),
            y=alt.Y("candidate:N", title=None, sort=None),
            color=_FIRST,
        )
    )
    return _sized(drawn, WIDTH - 90, max(80, 22 * len(rows)))


def reliability_diagram(subject: Subject) -> Chart:
    """How often the head is right beside how sure it is, before and after the temperature chosen on val."""
    scaled = f"temperature {subject.measured.temperature:.2f}"
    rows = [
        *_reliability_rows(subject.measured.bins, "as it is"),
        *_reliability_rows(subject.measured.scaled_bins, scaled),
    ]
    x = alt.X("confidence:Q", title="how sure it is", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("accuracy:Q", title="how often it is right", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1]))
    diagonal = alt.Chart(_data([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
    found = (
        alt.Chart(_data(rows))
        .mark_line(point={"filled": True, "size": 45})
        .encode(x=x, y=y, color=alt.Color("probabilities:N", sort=None, legend=_LEGEND), order="confidence:Q")
    )
    return _sized(diagonal.mark_line(strokeDash=[4, 4], strokeWidth=1).encode(x=x, y=y) + found, WIDTH, 260)


def confusion(subject: Subject) -> Chart:
    """The confusion matrix: shares of each class, by what was said of its images."""
    counts, classes = subject.measured.confusion or (), subject.run.classes
    rows = [
        {"class": classes[row], "said": classes[column], "images": count, "share": count / max(1, sum(line))}
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
    ]
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("said:N", title="what was said", sort=None, axis=alt.Axis(labelAngle=-45, orient="top")),
        y=alt.Y("class:N", title="class", sort=None),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("share:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1]))
    )
    numbers = base.mark_text(fontSize=11).encode(
        text="images:Q", color=alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
    )
    size = max(WIDTH, 34 * len(classes))
    return _sized(cells + numbers, size, size)


def recalls(subject: Subject) -> Chart:
    """The share of each class that is recognised, the best first."""
    pairs = zip(subject.run.classes, subject.measured.recall, strict=True)
    rows = [{"class": name, "recall": value} for name, value in pairs if value is not None]
    drawn = (
        alt.Chart(_data(rows))
        .mark_bar()
        .encode(
            x=alt.X("recall:Q", axis=_PER_CENT, scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("class:N", title=None, sort="-x"),
            color=_FIRST,
        )
    )
    return _sized(drawn, WIDTH - 110, max(60, 20 * len(rows)))


def feature_map(places: Sequence[tuple[int, int]], classes: Sequence[str], explained: Sequence[str]) -> Chart:
    """The map of features, a point an image, coloured by class; `explained`: the titles of both axes."""
    rows = [{"x": x, "y": y, "class": name} for (x, y), name in zip(places, classes, strict=True)]
    axis = alt.Axis(labels=False, ticks=False, grid=False)
    drawn = (
        alt.Chart(_data(rows))
        .mark_circle(size=14, opacity=0.6)
        .encode(
            x=alt.X("x:Q", title=explained[0], axis=axis),
            y=alt.Y("y:Q", title=explained[1], axis=axis),
            color=alt.Color("class:N", sort=sorted(set(classes)), legend=_LEGEND),
        )
    )
    return _sized(drawn, 2 * WIDTH, 2 * WIDTH)


def benchmark(bars: Sequence[Mapping[str, Any]]) -> Chart:
    """Seconds to the first tested head, and to all of them, by way: `way`, `what`, `seconds`. A logarithmic scale."""
    drawn = (
        alt.Chart(_data(list(map(dict, bars))))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("seconds:Q", scale=alt.Scale(type="log"), title="seconds, logarithmic"),
            y=alt.Y("way:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color("what:N", sort=None, legend=_LEGEND),
            shape=alt.Shape("what:N", sort=None, legend=_LEGEND),
        )
    )
    return _sized(drawn, WIDTH - 150, 150)


def _reliability_rows(bins: Sequence[Bin], name: str) -> Rows:
    # A bin of two images is a spike that says nothing.
    least = min(10.0, sum(one.images for one in bins) / 50)
    return [
        {"confidence": one.confidence, "accuracy": one.accuracy, "images": one.images, "probabilities": name}
        for one in bins
        if one.images >= least
    ]


def _data(rows: Rows) -> dict[str, Rows]:
    return {"values": rows}


def _sized(chart: Chart, width: int, height: int) -> Chart:
    sized: Chart = chart.properties(width=width, height=height)
    return sized


def _epochs(rows: Rows) -> alt.X:
    last = max((row["epoch"] for row in rows), default=1)
    # Whole epochs only, also where there are few.
    return alt.X("epoch:Q", title="epoch", axis=alt.Axis(format="d", tickCount=min(last, 8), tickMinStep=1))


def _points(rows: Rows) -> bool:
    return max((row["epoch"] for row in rows), default=1) <= 25


_PER_CENT: Final = alt.Axis(format="%")
_LEGEND: Final = alt.Legend(orient="bottom", title=None, columns=2, labelLimit=220)
_FIRST: Final = alt.value(SERIES[0])
