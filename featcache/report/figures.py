"""The charts of a page, each with what it says in words and numbers for those who do not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from featcache.heads.records import EpochRecord
from featcache.report import charts
from featcache.report.benchmark_file import Benchmark
from featcache.report.charts import Chart
from featcache.report.page import per_cent
from featcache.report.subjects import Subject

Table = list[list[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """`described`: what the chart shows, in one sentence. `rows`: its numbers, a cell a `columns`."""

    chart: Chart
    title: str
    described: str
    columns: Sequence[str]
    rows: Table
    svg: str = field(default="", repr=False)
    note: str = ""


def of_runs(subjects: Sequence[Subject]) -> list[Figure]:
    """What compares several runs: accuracy with its interval, and val accuracy by epoch."""
    found = [_accuracies(subjects)] if len(subjects) > 1 else []
    trained = [one for one in subjects if _trained(one)]
    return [*found, _by_epoch(trained)] if len(trained) > 1 else found


def of_one(subject: Subject) -> list[Figure]:
    """What is drawn of one run: how it was found, and how far its confidence can be believed."""
    return [_learning(subject) if _trained(subject) else _candidates(subject), _reliability(subject)]


def of_benchmark(found: Benchmark) -> Figure:
    """Seconds by way of training."""
    return Figure(
        chart=charts.benchmark(found.bars),
        title="From nothing to tested heads",
        described=f"Seconds by way of training. {found.told}",
        columns=("way", "until", "seconds"),
        rows=[[str(bar["way"]), str(bar["what"]), f"{bar['seconds']:,.2f}"] for bar in found.bars],
        note=found.note,
    )


def _trained(subject: Subject) -> bool:
    return not subject.run.config.architecture.solved and len(subject.history) > 1


def _accuracies(subjects: Sequence[Subject]) -> Figure:
    parts = " or ".join(sorted({one.part for one in subjects}))
    best = max(subjects, key=lambda one: one.measured.accuracy)
    return Figure(
        chart=charts.accuracies(subjects),
        title=f"Accuracy on {parts}",
        described=f"{len(subjects)} runs; the highest accuracy is {per_cent(best.measured.accuracy)}, of {best.name}.",
        columns=("run", "accuracy", "from", "to"),
        rows=[[one.name, *map(per_cent, (one.measured.accuracy, *one.measured.accuracy_interval))] for one in subjects],
    )


def _by_epoch(subjects: Sequence[Subject]) -> Figure:
    return Figure(
        chart=charts.accuracy_by_epoch(subjects),
        title="Val accuracy by epoch",
        described="Val accuracy of each run, epoch by epoch.",
        columns=("run", "epoch", "val accuracy"),
        rows=[[one.name, str(record.epoch), per_cent(record.val_score)] for one in subjects for record in one.history],
    )


def _learning(subject: Subject) -> Figure:
    done = subject.run.training
    return Figure(
        chart=charts.learning_curve(subject),
        title="Learning curve",
        described=f"Loss on train and val over {done.epochs} epochs; epoch {done.best_epoch} was kept.",
        columns=("epoch", "train loss", "val loss", "val accuracy"),
        rows=_history_rows(subject.history, lambda record: str(record.epoch)),
        note=_train_loss_note(subject),
    )


def _candidates(subject: Subject) -> Figure:
    done = subject.run.training
    chosen = subject.history[done.best_epoch - 1].candidate or "the only one"
    return Figure(
        chart=charts.candidates(subject),
        title="What was tried",
        described=f"Val accuracy of {done.epochs} candidates; {chosen} was chosen.",
        columns=("candidate", "train loss", "val loss", "val accuracy"),
        rows=_history_rows(subject.history, lambda record: record.candidate or str(record.epoch)),
        note=f"Chosen on val: {chosen}.",
    )


def _history_rows(history: Sequence[EpochRecord], name: Callable[[EpochRecord], str]) -> Table:
    return [
        [name(record), _loss(record.train_loss), _loss(record.val_loss), per_cent(record.val_score)]
        for record in history
    ]


def _loss(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _train_loss_note(subject: Subject) -> str:
    smoothed = subject.run.config.label_smoothing > 0 or subject.run.config.class_weights != "none"
    return "Train loss is that of smoothed or weighted labels, and cannot be set beside val's." if smoothed else ""


def _reliability(subject: Subject) -> Figure:
    measured = subject.measured
    return Figure(
        chart=charts.reliability_diagram(subject),
        title="Calibration",
        described=(
            f"How often the head is right beside how sure it is: expected calibration error "
            f"{per_cent(measured.calibration_error)}, {per_cent(measured.scaled_calibration_error)} after temperature "
            f"{measured.temperature:.2f}."
        ),
        columns=("confidence", "images", "mean confidence", "right"),
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
            "Below the diagonal it is surer than it should be. Bins of few images are in the numbers only."
        ),
    )
