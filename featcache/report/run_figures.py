"""The figures of runs: compared by their metric and by epoch, and of one run by the kind of its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from featcache.heads.class_metrics import wilson_interval
from featcache.heads.metric_records import Bin, ClassMetrics, ListMetrics, NumberMetrics
from featcache.heads.records import EpochRecord
from featcache.report.drawing import (
    COLOUR,
    PER_CENT,
    SERIES,
    Chart,
    Figure,
    Values,
    colour_by,
    data,
    intervals,
    shorten,
    with_height,
)
from featcache.report.page import per_cent
from featcache.report.run_results import METRICS, RunResult, interval_text, score_text

LARGEST_MATRIX = 40
"""The most classes of a confusion matrix that is still readable."""
MOST_ROWS, MOST_LINES, MOST_POINTS = 20, 8, 400
"""The most rows, lines and points of a chart."""


def metric_axis(field: str, metric: str, title: str = "", **scale: Any) -> alt.X:
    """The horizontal axis of a metric."""
    axis = PER_CENT if metric == "accuracy" else alt.Axis(tickCount=5)
    return alt.X(f"{field}:Q", title=title or METRICS[metric], axis=axis, scale=alt.Scale(**{"zero": False, **scale}))


def comparison_figures(results: Sequence[RunResult]) -> list[Figure]:
    """Runs with one target compared: their metric with its interval, and the metric on val by epoch."""
    figures = [_scores(results)] if len(results) > 1 else []
    trained = [one for one in results if _trained(one)][:MOST_LINES]
    return [*figures, _by_epoch(trained)] if len(trained) > 1 else figures


def run_figures(result: RunResult) -> list[Figure]:
    """The figures of one run: its training or its candidates, and its predictions."""
    return [_learning(result) if _trained(result) else _candidates(result), *_of_kind(result)]


def paper_figures(result: RunResult) -> list[Figure]:
    """The figures of one run for papers: also those that are tables on the page."""
    more = []
    if isinstance(result.measured, ClassMetrics):
        more = [_recalls(result, result.measured)]
        if result.measured.confusion is not None and len(result.run.classes) <= LARGEST_MATRIX:
            more.append(_confusion(result, result.measured.confusion))
    return [*run_figures(result), *more]


def feature_map(positions: Sequence[tuple[int, int]], groups: Sequence[str | float], axes: tuple[str, str]) -> Figure:
    """The map of features, one point per image, coloured by class or number; `axes`: the titles of both axes."""
    rows = [{"x": x, "y": y, "group": name} for (x, y), name in zip(positions, groups, strict=True)]
    names = sorted({name for name in groups if isinstance(name, str)})
    axis = alt.Axis(labels=False, ticks=False, grid=False)

    def draw(letters: int) -> Chart:
        numbers = alt.Color("group:Q", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(title=None))
        chart = (
            alt.Chart(data(rows))
            .mark_circle(size=8, opacity=0.7)
            .encode(
                x=alt.X("x:Q", title=axes[0], axis=axis, scale=alt.Scale(zero=False, nice=True)),
                y=alt.Y("y:Q", title=axes[1], axis=axis, scale=alt.Scale(zero=False, nice=True)),
                color=colour_by("group", names, letters) if names else numbers,
            )
        )
        return with_height(chart, 240)

    return Figure(title="Map of the features", description="", columns=(), rows=(), draw=draw)


def _trained(result: RunResult) -> bool:
    return not result.run.config.architecture.solved and len(result.history) > 1


# --- several runs ------------------------------------------------------------------------------------------


def _scores(results: Sequence[RunResult]) -> Figure:
    metric, parts = results[0].metric, " or ".join(sorted({one.part for one in results}))
    ordered = sorted(results, key=lambda one: -one.score.value)
    shown = ordered[:MOST_ROWS]
    rows = [
        {"name": one.name, "value": one.score.value, "low": one.interval[0], "high": one.interval[1]} for one in shown
    ]
    more = f" The best {len(shown)} of {len(results)} are drawn." if len(shown) < len(results) else ""
    title = METRICS[metric]
    return Figure(
        title=f"{title[0].upper()}{title[1:]} on {parts}",
        description=f"{len(results)} runs; the highest is {score_text(ordered[0].score.value, metric)}, of "
        f"{ordered[0].name}.",
        columns=("run", METRICS[metric], "95 % interval"),
        rows=[
            [one.name, score_text(one.score.value, metric, 2), interval_text(one.interval, metric)] for one in ordered
        ],
        draw=lambda letters: intervals(
            rows, axis=metric_axis("low", metric, f"{METRICS[metric]}, with its 95 % interval"), letters=letters
        ),
        note=f"Lines are 95 % intervals.{more}",
    )


def _by_epoch(results: Sequence[RunResult]) -> Figure:
    metric = results[0].metric
    names = [one.name for one in results]
    rows: Values = [
        {"run": one.name, "epoch": record.epoch, "value": record.val_score}
        for one in results
        for record in one.history
        if np.isfinite(record.val_score)
    ]

    def draw(letters: int) -> Chart:
        short = {name: shorten(name, letters - 6) for name in names}
        own = [{**row, "run": short[row["run"]]} for row in rows]
        axis = PER_CENT if metric == "accuracy" else alt.Axis(tickCount=5)
        chart = (
            alt.Chart(data(own))
            .mark_line(point=_points(rows))
            .encode(
                x=_epochs(rows),
                y=alt.Y("value:Q", title=METRICS[metric], axis=axis, scale=alt.Scale(zero=False)),
                color=colour_by("run", list(short.values()), letters),
            )
        )
        return with_height(chart, 220)

    return Figure(
        title=f"Val {METRICS[metric]} by epoch",
        description=f"{METRICS[metric]} of {len(results)} runs on val, epoch by epoch.",
        columns=("run", "epoch", "val"),
        rows=[
            [one.name, str(record.epoch), score_text(record.val_score, metric)]
            for one in results
            for record in one.history
        ],
        draw=draw,
    )


# --- training ----------------------------------------------------------------------------------------------


def _learning(result: RunResult) -> Figure:
    done, metric = result.run.training, result.metric
    rows = [
        {"epoch": record.epoch, "loss": value, "of": part}
        for record in result.history
        for part, value in (("train", record.train_loss), ("val", record.val_loss))
        if np.isfinite(value)
    ]

    def draw(letters: int) -> Chart:
        lines = (
            alt.Chart(data(rows))
            .mark_line(point=_points(rows))
            .encode(
                x=_epochs(rows),
                y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
                color=colour_by("of", ("train", "val"), letters),
            )
        )
        rule = alt.Chart(data([{"epoch": done.best_epoch}])).mark_rule(strokeDash=[4, 4]).encode(x="epoch:Q")
        return with_height(lines + rule, 220)

    smoothed = result.run.config.label_smoothing > 0 or result.run.config.class_weights != "none"
    more = " Train loss uses smoothed or weighted labels, so it is not comparable with val loss." if smoothed else ""
    return Figure(
        title="Learning curve",
        description=f"Loss on train and val over {done.epochs} epochs; epoch {done.best_epoch} was kept.",
        columns=("epoch", "train loss", "val loss", f"val {METRICS[metric]}"),
        rows=_history_rows(result, lambda record: str(record.epoch)),
        draw=draw,
        note=f"Dashed: epoch {done.best_epoch}, which was kept.{more}",
    )


def _candidates(result: RunResult) -> Figure:
    done, metric = result.run.training, result.metric
    chosen = result.history[done.best_epoch - 1].candidate or "the only candidate"
    rows = [
        {
            "name": record.candidate or "the only candidate",
            "value": record.val_score,
            "low": record.val_score,
            "high": record.val_score,
        }
        for record in result.history
        if np.isfinite(record.val_score)
    ]

    return Figure(
        title="Candidates",
        description=f"The {METRICS[metric]} on val of {done.epochs} candidates; {chosen} was chosen.",
        columns=("candidate", "train loss", "val loss", f"val {METRICS[metric]}"),
        rows=_history_rows(result, lambda record: record.candidate or str(record.epoch)),
        draw=lambda letters: intervals(
            rows, axis=metric_axis("low", metric, f"val {METRICS[metric]}"), letters=letters
        ),
        note=f"Chosen on val: {chosen}.",
    )


def _history_rows(result: RunResult, name: Callable[[EpochRecord], str]) -> list[list[str]]:
    return [
        [name(one), _loss(one.train_loss), _loss(one.val_loss), score_text(one.val_score, result.metric)]
        for one in result.history
    ]


def _loss(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""


def _epochs(rows: Sequence[dict[str, Any]]) -> alt.X:
    last = max((row["epoch"] for row in rows), default=1)
    # Named, because an axis shared with the dashed line may place ticks at half epochs and show them rounded.
    step = -(-last // 8)
    return alt.X("epoch:Q", title="epoch", axis=alt.Axis(format="d", values=list(range(step, last + 1, step))))


def _points(rows: Sequence[dict[str, Any]]) -> bool:
    return max((row["epoch"] for row in rows), default=1) <= 25


# --- predictions, by kind of target ------------------------------------------------------------------------


def _of_kind(result: RunResult) -> list[Figure]:
    match result.measured:
        case ClassMetrics() as measured:
            return [_calibration(measured)]
        case ListMetrics() as measured:
            return [_average_precisions(result, measured)]
        case NumberMetrics() as measured:
            return [
                figure
                for column in range(min(len(measured.columns), 4))
                for figure in _numbers(result, measured, column)
            ]


def _calibration(measured: ClassMetrics) -> Figure:
    scaled = f"temperature {measured.temperature:.2f}"
    names = ("not scaled", scaled)
    rows = [
        _bin(one, name) for name, bins in zip(names, (measured.bins, measured.scaled_bins), strict=True) for one in bins
    ]

    def draw(letters: int) -> Chart:
        axis: dict[str, Any] = {"axis": PER_CENT, "scale": alt.Scale(domain=[0, 1])}
        x, y = alt.X("confidence:Q", title="confidence", **axis), alt.Y("accuracy:Q", title="accuracy", **axis)
        colour = colour_by("probabilities", names, letters)
        diagonal = alt.Chart(data([{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]))
        base = alt.Chart(data(rows)).encode(x=x, color=colour)
        spans = (
            alt.Chart(data([row for row in rows if row["probabilities"] == names[0]]))
            .mark_rule(strokeWidth=1.5, opacity=0.5)
            .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
        )
        line = base.mark_line(strokeWidth=1, opacity=0.6).encode(y=y, order="confidence:Q")
        size = alt.Size(
            "images:Q",
            scale=alt.Scale(range=[15, 260]),
            legend=alt.Legend(
                orient="bottom",
                title="images",
                direction="horizontal",
                tickCount=3,
                symbolFillColor=SERIES[7],
            ),
        )
        points = base.mark_point(filled=True, opacity=0.85).encode(y=y, size=size)
        return with_height(
            diagonal.mark_line(strokeDash=[4, 4], strokeWidth=1).encode(x=x, y=y) + spans + line + points, 260
        )

    return Figure(
        title="Calibration",
        description=(
            f"Accuracy by confidence: expected calibration error {per_cent(measured.calibration_error)}, "
            f"{per_cent(measured.scaled_calibration_error)} after temperature {measured.temperature:.2f}."
        ),
        columns=("confidence", "images", "mean confidence", "accuracy", "95 % interval"),
        rows=[
            [
                f"{per_cent(one.low, 0)} to {per_cent(one.high, 0)}",
                f"{one.images:,}",
                *map(per_cent, (one.confidence, one.accuracy)),
                interval_text(wilson_interval(one.accuracy * one.images, one.images), "accuracy"),
            ]
            for one in measured.bins
        ],
        draw=draw,
        note=(
            f"Expected calibration error {per_cent(measured.calibration_error)}; with the temperature "
            f"{measured.temperature:.2f}, chosen on val, {per_cent(measured.scaled_calibration_error)}. Below the "
            "diagonal the head is overconfident. The area of a point is its number of images, the line its 95 % "
            "interval."
        ),
    )


def _bin(one: Bin, name: str) -> dict[str, Any]:
    low, high = wilson_interval(one.accuracy * one.images, one.images)
    return {
        "probabilities": name,
        "confidence": one.confidence,
        "accuracy": one.accuracy,
        "images": one.images,
        "low": low,
        "high": high,
    }


def _bars(title: str, value: str, rows: list[tuple[str, float, int]]) -> Figure:
    """Bars of a share for each class, from (class, share, images), the highest first."""
    ordered = sorted(rows, key=lambda one: -one[1])
    # Of many classes, the best and the worst.
    half = MOST_ROWS // 2
    shown = ordered if len(ordered) <= MOST_ROWS else [*ordered[:half], *ordered[-half:]]

    def draw(letters: int) -> Chart:
        own = [{"name": shorten(name, letters // 2), "value": share} for name, share, _ in shown]
        base = alt.Chart(data(own)).encode(y=alt.Y("name:N", title=None, sort=None))
        x = alt.X("value:Q", title=value, axis=PER_CENT, scale=alt.Scale(domain=[0, 1]))
        return with_height(base.mark_bar().encode(x=x, color=COLOUR), max(60, 20 * len(own)))

    left_out = f"The {half} highest and {half} lowest of {len(ordered)}." if len(shown) < len(ordered) else ""
    return Figure(
        title=title,
        description=f"{value} of {len(ordered)} classes: from {per_cent(ordered[-1][1])} to {per_cent(ordered[0][1])}."
        if ordered
        else f"No class has a {value}.",
        columns=("class", value, "images"),
        rows=[[name, per_cent(share), f"{images:,}"] for name, share, images in ordered],
        draw=draw,
        note=left_out,
    )


def _recalls(result: RunResult, measured: ClassMetrics) -> Figure:
    parts = zip(result.run.classes, measured.recall, measured.images, strict=True)
    return _bars("Recall", "recall", [(name, share, images) for name, share, images in parts if share is not None])


def _average_precisions(result: RunResult, measured: ListMetrics) -> Figure:
    parts = zip(result.run.classes, measured.average_precision, measured.images, strict=True)
    rows = [(name, share, images) for name, share, images in parts if share is not None]
    return _bars("Average precision by label", "average precision", rows)


def _confusion(result: RunResult, counts: Sequence[Sequence[int]]) -> Figure:
    classes = result.run.classes
    rows = [
        {"class": classes[row], "predicted": classes[column], "images": count, "share": count / max(1, sum(line))}
        for row, line in enumerate(counts)
        for column, count in enumerate(line)
    ]

    def draw(letters: int) -> Chart:
        base = alt.Chart(data(rows)).encode(
            x=alt.X("predicted:N", title="predicted", sort=None, axis=alt.Axis(labelAngle=-45, orient="top")),
            y=alt.Y("class:N", title="class", sort=None),
        )
        fill = alt.Color("share:Q", legend=None, scale=alt.Scale(scheme="blues", domain=[0, 1]))
        ink = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
        # Numbers would overlap in small cells.
        size = max(3, min(8, letters * 4 // max(1, len(classes)) // 3))
        numbers = base.mark_text(fontSize=size).encode(text="images:Q", color=ink)
        return with_height(base.mark_rect().encode(color=fill) + numbers, 220)

    return Figure(title="Confusion", description="", columns=(), rows=(), draw=draw)


def _numbers(result: RunResult, measured: NumberMetrics, column: int) -> list[Figure]:
    """Predicted against true values of one column, and the residuals."""
    name, errors = result.target.names[column], measured.columns[column]
    predictions = result.predictions
    chosen = np.unique(np.linspace(0, len(predictions.ids) - 1, MOST_POINTS).astype(np.int64))
    targets, outputs = predictions.targets[chosen, column], predictions.outputs[chosen, column].astype(np.float64)
    rows = [
        {"true": true, "predicted": value, "residual": value - true}
        for true, value in zip(targets.tolist(), outputs.tolist(), strict=True)
    ]
    low, high = float(min(targets.min(), outputs.min())), float(max(targets.max(), outputs.max()))
    ends = [{"true": value, "predicted": value, "residual": 0.0} for value in (low, high)]
    left_out = (
        f" {len(chosen):,} of {len(predictions.ids):,} images are drawn." if len(chosen) < len(predictions.ids) else ""
    )
    table = [
        [what, f"{one.value:,.4g}", f"{one.interval[0]:,.4g} to {one.interval[1]:,.4g}"]
        for what, one in (
            ("mean absolute error", errors.mae),
            ("root mean squared error", errors.rmse),
            ("R²", errors.r2),
            ("Spearman", errors.spearman),
        )
        if one is not None
    ]

    def draw(x: str, y: str) -> Callable[[int], Chart]:
        def chart(_letters: int) -> Chart:
            points = alt.Chart(data(rows)).mark_circle(size=18, opacity=0.55, aria=False)
            line = alt.Chart(data(ends)).mark_line(strokeDash=[4, 4], strokeWidth=1)
            across = alt.X(f"{x}:Q", title=x, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
            up = alt.Y(f"{y}:Q", title=y, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
            return with_height(line.encode(x=across, y=up) + points.encode(x=across, y=up, color=COLOUR), 260)

        return chart

    columns = ("error", "value", "95 % interval")
    summary = f"R² {errors.r2.value:.3f}, mean absolute error {errors.mae.value:,.4g}."
    return [
        Figure(
            title=f"{name}: predicted against true",
            description=f"Predicted and true {name}: {summary}",
            columns=columns,
            rows=table,
            draw=draw("true", "predicted"),
            note=f"{summary} Dashed: predictions without error.{left_out}",
        ),
        Figure(
            title=f"{name}: residuals",
            description=f"Predicted minus true {name} by the predicted value: {summary}",
            columns=columns,
            rows=table,
            draw=draw("predicted", "residual"),
            note=f"Predicted minus true: a slope or a funnel shows what the head does not fit.{left_out}",
        ),
    ]
