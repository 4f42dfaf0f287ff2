"""The charts of a page, each with a description and a table of its numbers for screen readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from featcache.heads.records import EpochRecord
from featcache.report import charts
from featcache.report.benchmark_file import Benchmark
from featcache.report.charts import Chart
from featcache.report.page import per_cent
from featcache.report.run_results import RunResult

Table = list[list[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A chart on the page. `description`: one sentence. `rows`: its numbers, one cell per entry of `columns`."""

    chart: Chart
    title: str
    description: str
    columns: Sequence[str]
    rows: Table
    svg: str = field(default="", repr=False)
    note: str = ""


def comparison_figures(results: Sequence[RunResult]) -> list[Figure]:
    """Charts that compare several runs: accuracy with its interval, and val accuracy by epoch."""
    figures = [_accuracies(results)] if len(results) > 1 else []
    trained = [one for one in results if _trained(one)]
    return [*figures, _by_epoch(trained)] if len(trained) > 1 else figures


def run_figures(result: RunResult) -> list[Figure]:
    """Charts of one run: its training or its candidates, and its calibration."""
    return [_learning(result) if _trained(result) else _candidates(result), _reliability(result)]


def benchmark_figure(benchmark: Benchmark) -> Figure:
    """The chart of a benchmark: seconds by setup."""
    return Figure(
        chart=charts.benchmark(benchmark.bars),
        title="Time until heads are tested",
        description=f"Seconds by setup. {benchmark.summary}",
        columns=("setup", "until", "seconds"),
        rows=[[str(bar["setup"]), str(bar["what"]), f"{bar['seconds']:,.2f}"] for bar in benchmark.bars],
        note=benchmark.note,
    )


def _trained(result: RunResult) -> bool:
    return not result.run.config.architecture.solved and len(result.history) > 1


def _accuracies(results: Sequence[RunResult]) -> Figure:
    parts = " or ".join(sorted({one.part for one in results}))
    best = max(results, key=lambda one: one.measured.accuracy)
    return Figure(
        chart=charts.accuracies(results),
        title=f"Accuracy on {parts}",
        description=f"{len(results)} runs; the highest accuracy is {per_cent(best.measured.accuracy)}, of {best.name}.",
        columns=("run", "accuracy", "from", "to"),
        rows=[[one.name, *map(per_cent, (one.measured.accuracy, *one.measured.accuracy_interval))] for one in results],
    )


def _by_epoch(results: Sequence[RunResult]) -> Figure:
    return Figure(
        chart=charts.accuracy_by_epoch(results),
        title="Val accuracy by epoch",
        description="Val accuracy of each run, epoch by epoch.",
        columns=("run", "epoch", "val accuracy"),
        rows=[[one.name, str(record.epoch), per_cent(record.val_score)] for one in results for record in one.history],
    )


def _learning(result: RunResult) -> Figure:
    done = result.run.training
    return Figure(
        chart=charts.learning_curve(result),
        title="Learning curve",
        description=f"Loss on train and val over {done.epochs} epochs; epoch {done.best_epoch} was kept.",
        columns=("epoch", "train loss", "val loss", "val accuracy"),
        rows=_history_rows(result.history, lambda record: str(record.epoch)),
        note=_train_loss_note(result),
    )


def _candidates(result: RunResult) -> Figure:
    done = result.run.training
    chosen = result.history[done.best_epoch - 1].candidate or "the only candidate"
    return Figure(
        chart=charts.candidates(result),
        title="Candidates",
        description=f"Val accuracy of {done.epochs} candidates; {chosen} was chosen.",
        columns=("candidate", "train loss", "val loss", "val accuracy"),
        rows=_history_rows(result.history, lambda record: record.candidate or str(record.epoch)),
        note=f"Chosen on val: {chosen}.",
    )


def _history_rows(history: Sequence[EpochRecord], name: Callable[[EpochRecord], str]) -> Table:
    return [
        [name(record), _loss(record.train_loss), _loss(record.val_loss), per_cent(record.val_score)]
        for record in history
    ]


def _loss(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _train_loss_note(result: RunResult) -> str:
    smoothed = result.run.config.label_smoothing > 0 or result.run.config.class_weights != "none"
    return "Train loss uses smoothed or weighted labels, so it is not comparable with val loss." if smoothed else ""


def _reliability(result: RunResult) -> Figure:
    measured = result.measured
    return Figure(
        chart=charts.reliability_diagram(result),
        title="Calibration",
        description=(
            f"Accuracy by confidence: expected calibration error "
            f"{per_cent(measured.calibration_error)}, {per_cent(measured.scaled_calibration_error)} after temperature "
            f"{measured.temperature:.2f}."
        ),
        columns=("confidence", "images", "mean confidence", "accuracy"),
        rows=[
            [
                f"{per_cent(one.low, 0)} to {per_cent(one.high, 0)}",
                f"{one.images:,}",
                *map(per_cent, (one.confidence, one.accuracy)),
            ]
            for one in measured.bins
        ],
        note=(
            f"Expected calibration error {per_cent(measured.calibration_error)}; with the temperature "
            f"{measured.temperature:.2f}, chosen on val, {per_cent(measured.scaled_calibration_error)}. "
            "Below the diagonal the head is overconfident. Bins of few images are only in the numbers."
        ),
    )
