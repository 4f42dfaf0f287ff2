"""Writes a sweep as files and as a table, into its own folder in the folder of runs.

    <runs_dir>/<UTC time>-<backbone>-sweep-<unique>/
        sweep.json      the result of `Sweep.to_json`
        table.csv       one line per row of the table, for programs
        table.md        the table, for reading

Each chosen head is a run, in its own folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from featcache.display import Summary
from featcache.display import Table as ShownTable
from featcache.errors import HeadError
from featcache.runs.files import SWEEP_FILE, json_bytes, publish_folder
from featcache.sweeps.records import Estimate, Sweep, SweepRow
from featcache.text import human_seconds
from featcache.training.checkpoint_file import CHECKPOINT_FILE

CSV_FILE, MARKDOWN_FILE = "table.csv", "table.md"
IN_WORDS = {"accuracy": "accuracy in per cent", "map": "mean average precision", "r2": "R2"}
_CSV_COLUMNS = ("metric", "value", "spread", "low", "high", "loss", "test", "epochs", "seconds", "heads", "remark")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text cells, one row per combination; accuracies in per cent.

    `tied`: the number of first rows that do not differ clearly from the best (a line is drawn below them); 0 for none.
    `legend`: sentences that explain the table.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    tied: int
    legend: tuple[str, ...]


def write_sweep(sweep: Sweep, checkpoint: bytes | None = None) -> None:
    """Write the folder of a sweep atomically. Raises HeadError if it cannot be written.

    `checkpoint`: from which an interrupted sweep can be resumed; None if it was not interrupted.
    """
    files = {
        SWEEP_FILE: json_bytes(sweep.to_json()),
        CSV_FILE: csv_text(sweep).encode(),
        MARKDOWN_FILE: markdown(sweep).encode(),
    } | ({} if checkpoint is None else {CHECKPOINT_FILE: checkpoint})
    try:
        publish_folder(sweep.folder, files)
    except OSError as error:
        raise HeadError(
            f"cannot write the sweep {sweep.folder}: {error}", hint="free space, or another --runs-dir"
        ) from error


def csv_text(sweep: Sweep) -> str:
    """The table as CSV: accuracies as fractions, missing values empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    options = [name for name in sweep.options if name != "head"]
    writer.writerow(("rank", "head", *options, "shots", *_CSV_COLUMNS))
    for number, row in enumerate(sweep.rows, start=1):
        values = [row.values.get(name, "") for name in options]
        writer.writerow((number, row.config.head, *values, row.shots or "", *_csv_cells(row)))
    return text.getvalue()


def markdown(sweep: Sweep) -> str:
    """The table as a Markdown page."""
    table = table_of(sweep)
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    paragraphs = [
        "# Sweep" + (", interrupted" if sweep.interrupted else ""),
        "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines),
        "\n".join(table.legend),
        "\n".join(f"- {note}" for note in sweep.notes),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def table_of(sweep: Sweep) -> Table:
    """The rows of a sweep in their order."""
    columns = _Columns(
        sweep=sweep,
        intervals=any(row.estimate is not None and row.estimate.interval is not None for row in sweep.rows),
        tests=any(row.test is not None for row in sweep.rows),
        remarks=any(row.remark for row in sweep.rows),
    )
    rows = [tuple(columns.cells(number, row)) for number, row in enumerate(sweep.rows, start=1)]
    return Table(header=tuple(columns.header()), rows=tuple(rows), tied=sweep.tied, legend=tuple(_legend(sweep)))


def summary_of(sweep: Sweep) -> Summary:
    """The chosen head, and the table."""
    table = table_of(sweep)
    best = sweep.best.estimate
    heads = sum(len(row.heads) for row in sweep.rows)
    return Summary(
        title=sweep.folder.name,
        about=f"{heads:,} heads" + (", interrupted" if sweep.interrupted else ""),
        facts=[
            ("best", ", ".join([sweep.best.config.head, *_values_beside_head(sweep.best)])),
            *([] if best is None else [(f"{best.metric} on {sweep.judge}", score_text(best.value, best.metric))]),
            *([] if sweep.test is None else [("on test", score_text(sweep.test.value, sweep.test.metric))]),
            ("trained in", human_seconds(sweep.seconds)),
        ],
        tables=[ShownTable(header=table.header, rows=table.rows)],
        notes=[*table.legend, *sweep.notes],
    )


def _values_beside_head(row: SweepRow) -> list[str]:
    return [f"{name} {value}" for name, value in row.values.items() if name != "head"]


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a table; columns that would be empty are left out."""

    sweep: Sweep
    intervals: bool
    tests: bool
    remarks: bool

    @property
    def names(self) -> tuple[str, ...]:
        return self.sweep.options or ("head",)

    def header(self) -> Iterator[str]:
        yield "#"
        yield from ("shots",) if self.sweep.shots else ()
        yield from self.names
        yield from (self.sweep.judge, "+-")
        yield from ("95 %",) if self.intervals else ()
        yield from ("test", "95 %") if self.tests else ()
        yield from ("loss", "epochs", "seconds")
        yield from ("",) if self.remarks else ()

    def cells(self, number: int, row: SweepRow) -> Iterator[str]:
        one = row.estimate
        yield str(number)
        yield from (str(row.shots),) if self.sweep.shots else ()
        yield from (row.values.get(name, row.config.head if name == "head" else "-") for name in self.names)
        yield from (_value(one), _spread(one))
        yield from (_interval(one),) if self.intervals else ()
        yield from (_value(row.test), _interval(row.test)) if self.tests else ()
        yield from ("-" if one is None else f"{one.loss:.4f}", f"{row.epochs:.3g}", f"{row.seconds:.2f}")
        yield from (row.remark,) if self.remarks else ()


def _legend(sweep: Sweep) -> Iterator[str]:
    count = max(row.wanted for row in sweep.rows)
    means = "one head per row" if count == 1 else f"means over {count} heads per row; +-: their standard deviation"
    metric = next((row.estimate.metric for row in sweep.rows if row.estimate is not None), "accuracy")
    yield f"{sweep.judge}: {IN_WORDS[metric]}, {means}."
    if sweep.folds:
        yield f"Each of {sweep.folds} folds was held out once: not used to train the head or to choose its epoch."
    if sweep.shots:
        yield f"{sweep.draws} random draws of this number of images per class; val was cut off before."
    if sweep.best.estimate is not None and sweep.best.estimate.interval is not None:
        yield f"95 %: the interval over the {'draws' if sweep.shots else f'images of {sweep.judge}'}."
    if sweep.tied > 1:
        yield f"Rows 1 to {sweep.tied} do not differ clearly: their intervals overlap that of row 1."


def _csv_cells(row: SweepRow) -> tuple[object, ...]:
    one = row.estimate
    found: tuple[object, ...] = ("",) * 6
    if one is not None:
        low, high = one.interval or ("", "")
        found = (one.metric, one.value, "" if one.spread is None else one.spread, low, high, one.loss)
    tested = "" if row.test is None else row.test.value
    return (*found, tested, row.epochs, round(row.seconds, 3), len(row.heads), row.remark)


def score_text(value: float, metric: str) -> str:
    """A metric as text: accuracy in per cent, others unchanged."""
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4f}"


def _interval(one: Estimate | None) -> str:
    if one is None or one.interval is None:
        return "-"
    low, high = (score_text(bound, one.metric) for bound in one.interval)
    return f"{low} to {high}"


def _value(one: Estimate | None) -> str:
    return "-" if one is None else score_text(one.value, one.metric)


def _spread(one: Estimate | None) -> str:
    return "-" if one is None or one.spread is None else score_text(one.spread, one.metric)
