"""The content of a page as plain values: tables for the template, and JSON for the script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.heads.metric_records import ClassMetrics, ListMetrics, Measurement, NumberMetrics
from featcache.report.audit_view import AuditView
from featcache.report.conclusion import Group, Pair, runs_conclusion, sweep_conclusion
from featcache.report.drawing import NARROW, WIDE, Figure, svg
from featcache.report.embedding import UNITS, Embedding2d
from featcache.report.image_sets import ImageSet
from featcache.report.page import per_cent
from featcache.report.run_figures import LARGEST_MATRIX, comparison_figures, run_figures
from featcache.report.run_results import METRICS, RunResult, interval_text, score_text
from featcache.report.sweep_figures import sweep_figures
from featcache.report.thumbnails import COLUMNS, PER_SHEET, Thumbnails
from featcache.sweeps.records import Sweep

MOST_CONFUSIONS = 60
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """The data of a report.

    `groups`: all runs by their target. `detailed`: the runs that are shown in detail. `thumbnails` and `embeddings`:
    one entry per image set; an entry of `embeddings` has one per cache of the set.
    """

    groups: tuple[Group, ...]
    sweeps: tuple[Sweep, ...]
    detailed: tuple[RunResult, ...]
    image_sets: tuple[ImageSet, ...]
    thumbnails: tuple[Thumbnails, ...]
    embeddings: tuple[tuple[Embedding2d | None, ...], ...]
    audit_view: AuditView | None = None

    @property
    def results(self) -> tuple[RunResult, ...]:
        """All runs."""
        return tuple(one for group in self.groups for one in group.results)

    @property
    def best(self) -> RunResult:
        """The best run on val of the first target."""
        return self.groups[0].best


def with_svg(figures: Sequence[Figure]) -> list[Values]:
    """Figures as values for the template, each drawn for narrow and for wide cards."""
    return [
        {
            **{name: getattr(figure, name) for name in ("title", "description", "columns", "rows", "note")},
            "narrow": svg(figure, NARROW),
            "wide": svg(figure, WIDE),
        }
        for figure in figures
    ]


# --- the script's JSON -------------------------------------------------------------------------------------


def script_data(report: ReportData) -> Values:
    """The JSON of the page's script."""
    return {
        "columns": COLUMNS,
        "perSheet": PER_SHEET,
        "first": report.detailed.index(report.best),
        # The images of an audit are last.
        "imageSets": [
            *(
                _image_set_data(*parts)
                for parts in zip(report.image_sets, report.thumbnails, report.embeddings, strict=True)
            ),
            *([] if report.audit_view is None else [_audit_data(report.audit_view)]),
        ],
        "runs": [_run_data(report, one) for one in report.detailed],
    }


def _audit_data(audit_view: AuditView) -> Values:
    return {"ids": [sample.id for sample in audit_view.samples], **_sheet_data(audit_view.thumbnails)}


def _sheet_data(thumbnails: Thumbnails) -> Values:
    return {"sheets": list(thumbnails.sheets), "side": thumbnails.side, "tiles": thumbnails.tiles.tolist()}


def _image_set_data(image_set: ImageSet, thumbnails: Thumbnails, embeddings: Sequence[Embedding2d | None]) -> Values:
    return {
        "kind": image_set.target.kind,
        "classes": list(image_set.target.names),
        "ids": image_set.ids,
        "labels": _target_data(image_set.target.kind, image_set.targets),
        **_sheet_data(thumbnails),
        "maps": [
            None if embedding is None or (embedding.positions < 0).all() else _map_data(embedding)
            for embedding in embeddings
        ],
    }


def _target_data(kind: str, values: np.ndarray[Any, Any]) -> list[Any]:
    """Targets or predictions: an index for classes, a list of indices for labels, numbers with four digits."""
    if kind == "classes":
        return list(values.tolist())
    if kind == "lists":
        return [np.flatnonzero(row > 0).tolist() for row in values]
    return [[float(f"{number:.4g}") for number in row] for row in values.tolist()]


def _map_data(embedding: Embedding2d) -> Values:
    return {
        "title": embedding.title,
        "highest": np.clip(embedding.positions.max(axis=0), 1, UNITS).tolist(),
        "x": embedding.positions[:, 0].tolist(),
        "y": embedding.positions[:, 1].tolist(),
    }


def _run_data(report: ReportData, result: RunResult) -> Values:
    number, place = next(
        (number, place)
        for number, image_set in enumerate(report.image_sets)
        for place, cached in enumerate(image_set.caches)
        if result in cached.results
    )
    shown = report.image_sets[number].shown
    return {
        "imageSet": number,
        "map": place,
        "predicted": _target_data(result.target.kind, result.predicted[shown]),
        # For classes the confidence.
        "sizes": [round(size, 3) for size in result.sizes[shown].tolist()],
    }


# --- tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table. `rank`: 1 for one that is always shown, 2 not on a phone, 3 only on a wide screen."""

    title: str
    numeric: bool = True
    rank: int = 1


def _cell(text: str, value: float | str | None = None, more: str = "") -> Values:
    return {"text": text, "value": text if value is None else value, "more": more}


def _missing() -> Values:
    return _cell("", "")


def _number(value: float | None, text: str) -> Values:
    return _missing() if value is None else _cell(text, value)


def runs_table(report: ReportData, group: Group) -> Values:
    """The table of the runs of one target."""
    metric = METRICS[group.best.metric]
    classes = group.best.target.kind == "classes"
    several = len({one.run.features.label for one in group.results}) > 1
    columns = [
        Column(title="Run", numeric=False),
        Column(title=f"Test {metric}"),
        Column(title=f"Val {metric}", rank=2),
        Column(title="Test loss", rank=3),
        *([Column(title="Calibration error", rank=2)] if classes else []),
        Column(title="Epochs", rank=3),
        Column(title="Seconds", rank=2),
        Column(title="Parameters", rank=3),
        Column(title="Settings", numeric=False, rank=3),
        *([Column(title="Features", numeric=False, rank=3)] if several else []),
    ]
    detailed = list(report.detailed)
    rows = [
        {
            "name": one.name,
            "best": one is group.best and len(group.results) > 1,
            "detail": detailed.index(one) if one in detailed else None,
            "cells": _run_cells(one) + ([_cell(one.run.features.label)] if several else []),
        }
        for one in group.results
    ]
    return {"columns": columns, "rows": rows}


def _run_cells(result: RunResult) -> list[Values]:
    done, metric, measured = result.run.training, result.metric, result.measured
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    kind = "candidates" if result.run.config.architecture.solved else f"best {done.best_epoch}"
    value = _cell(score_text(result.score.value, metric, 2), result.score.value, interval_text(result.interval, metric))
    # Without a test split these cells are empty.
    tested = done.test is not None
    error = measured.calibration_error if isinstance(measured, ClassMetrics) else None
    return [
        value if tested else _missing(),
        _cell(score_text(done.val.value, metric, 2), done.val.value),
        _cell(f"{result.score.loss:.4f}", result.score.loss) if tested else _missing(),
        *([] if error is None else [_cell(per_cent(error), error)]),
        _cell(str(done.epochs), done.epochs, kind),
        _cell(f"{done.seconds:,.1f}", done.seconds, done.device),
        _cell(f"{done.trainable:,}", done.trainable),
        _cell(settings or "defaults"),
    ]


def group_content(report: ReportData, group: Group) -> Values:
    """All values that the template shows for the runs of one target."""
    shown = [one for one in group.results if one in report.detailed] if len(group.results) > 40 else group.results
    return {
        "title": group.title,
        "conclusion": runs_conclusion(group),
        "table": runs_table(report, group),
        "charts": with_svg(comparison_figures(shown)),
        "reference": group.best.name,
        "kind": group.best.target.kind,
        "pairs": [_pair(one) for one in group.pairs],
    }


def _pair(pair: Pair) -> Values:
    if pair.comparison is None:
        return {"name": pair.result.name, "problem": pair.problem}
    one = pair.comparison
    factor, digits = (100, 2) if one.metric == "accuracy" else (1, 4)
    low, high = (f"{factor * bound:+.{digits}f}" for bound in one.interval)
    p_value = pair.p_value
    return {
        "name": pair.result.name,
        "problem": None,
        "difference": one.difference,
        "difference_text": f"{factor * one.difference:+.{digits}f}",
        "interval": f"{low} to {high}",
        "only_this": one.only_first,
        "only_reference": one.only_second,
        "p": p_value,
        "p_text": "" if p_value is None else "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}",
        "differs": "yes" if pair.differs else "no",
    }


def sweep_content(sweep: Sweep) -> Values:
    """All values that the template shows for one sweep."""
    sentence, sure = sweep_conclusion(sweep)
    return {
        "name": sweep.folder.name,
        "conclusion": (sentence, sure),
        "facts": f"{sum(len(row.heads) for row in sweep.rows):,} heads in {sweep.seconds:,.0f} s"
        + (", interrupted" if sweep.interrupted else ""),
        "notes": list(sweep.notes),
        "charts": with_svg(sweep_figures(sweep)),
    }


# --- one run -----------------------------------------------------------------------------------------------


def detail(result: RunResult) -> Values:
    """All values that the template shows for one run."""
    classes = isinstance(result.measured, ClassMetrics)
    return {
        "name": result.name,
        "notes": [*result.run.training.notes, *result.notes],
        "facts": _facts(result),
        "charts": with_svg(run_figures(result)),
        "kind": result.target.kind,
        "classes": list(result.run.classes),
        "matrix": _matrix(result),
        "confused": _confusions(result) if classes else [],
        "table": _target_table(result),
    }


def _facts(result: RunResult) -> list[tuple[str, str]]:
    run, measured = result.run, result.measured
    images = ", ".join(f"{count:,} {part}" for part, count in run.training.images.items())
    value = f"{score_text(result.score.value, result.metric, 2)} {METRICS[result.metric]}"
    more: list[tuple[str, str]] = []
    if isinstance(measured, ClassMetrics):
        more = [
            *([("top 5", per_cent(measured.top5))] if measured.top5 is not None else []),
            ("balanced", f"{per_cent(measured.balanced_accuracy)} mean recall, {per_cent(measured.macro_f1)} macro F1"),
        ]
    elif isinstance(measured, ListMetrics):
        more = [
            ("F1", f"{per_cent(measured.micro_f1)} micro, {per_cent(measured.macro_f1)} macro"),
            ("exact match", f"{per_cent(measured.exact_match)} of the images have every label right"),
        ]
    return [
        ("evaluated on", f"{len(result.predictions.ids):,} {result.part} images: {value}"),
        *more,
        ("images", images),
        ("cache", f"{run.features.cache_name}, fingerprint {run.features.fingerprint[:12]}"),
        ("run", run.folder.name),
        ("trained", f"{run.created[:16].replace('T', ' ')} UTC, on {run.training.device}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
    ]


def _matrix(result: RunResult) -> list[Values] | None:
    counts = result.measured.confusion if isinstance(result.measured, ClassMetrics) else None
    if counts is None or len(counts) > LARGEST_MATRIX:
        return None
    return [{"counts": list(line), "total": max(1, sum(line))} for line in counts]


def _confusions(result: RunResult) -> list[Values]:
    labels, predicted, wrong = result.predictions.targets, result.predicted, result.wrong
    kinds, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    of_class = result.measured.images if isinstance(result.measured, ClassMetrics) else ()
    order = np.argsort(-counts, kind="stable")[:MOST_CONFUSIONS]
    return [
        {"label": label, "predicted": guess, "images": count, "share": count / max(1, of_class[label])}
        for (label, guess), count in zip(kinds[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _target_table(result: RunResult) -> Values:
    """The metrics of each class, label or column."""
    match result.measured:
        case ClassMetrics() as measured:
            return _class_table(result, measured)
        case ListMetrics() as measured:
            return _list_table(result, measured)
        case NumberMetrics() as measured:
            return _number_table(result, measured)


def _share(value: float | None) -> Values:
    return _number(value, per_cent(value))


def _class_table(result: RunResult, measured: ClassMetrics) -> Values:
    most_frequent = {one["label"]: one for one in reversed(_confusions(result))}
    classes = result.run.classes
    rows = [
        {
            "name": name,
            "cells": [
                _number(measured.images[label], f"{measured.images[label]:,}"),
                _share(measured.recall[label]),
                _share(measured.precision[label]),
                _share(_f1(measured.recall[label], measured.precision[label])),
                _cell(_most_confused_with(most_frequent.get(label), classes)),
            ],
        }
        for label, name in enumerate(classes)
    ]
    columns = [
        Column(title="Class", numeric=False),
        Column(title="Images"),
        Column(title="Recall"),
        Column(title="Precision", rank=2),
        Column(title="F1", rank=2),
        Column(title="Most often confused with", numeric=False, rank=2),
    ]
    note = (
        "Recall: the share of the class's images that are predicted correctly. Precision: the share of the images "
        "predicted as this class that belong to it."
    )
    return {"title": "Classes", "note": note, "columns": columns, "rows": rows}


def _list_table(result: RunResult, measured: ListMetrics) -> Values:
    parts = (measured.images, measured.average_precision, measured.recall, measured.precision, measured.thresholds)
    rows = [
        {
            "name": name,
            "cells": [
                _number(images, f"{images:,}"),
                _share(average),
                _share(recall),
                _share(precision),
                _share(least),
            ],
        }
        for name, images, average, recall, precision, least in zip(result.run.classes, *parts, strict=True)
    ]
    columns = [
        Column(title="Label", numeric=False),
        Column(title="Images"),
        Column(title="Average precision"),
        Column(title="Recall", rank=2),
        Column(title="Precision", rank=2),
        Column(title="Threshold", rank=2),
    ]
    note = "A label is predicted from its threshold on: the probability with the best F1 on val."
    return {"title": "Labels", "note": note, "columns": columns, "rows": rows}


def _number_table(result: RunResult, measured: NumberMetrics) -> Values:
    rows = [
        {"name": name, "cells": [_error_cell(one) for one in (errors.mae, errors.rmse, errors.r2, errors.spearman)]}
        for name, errors in zip(result.target.names, measured.columns, strict=True)
    ]
    columns = [
        Column(title="Column", numeric=False),
        Column(title="Mean absolute error"),
        Column(title="Root mean squared error", rank=2),
        Column(title="R²"),
        Column(title="Spearman", rank=2),
    ]
    return {"title": "Errors", "note": "With 95 % intervals.", "columns": columns, "rows": rows}


def _error_cell(one: Measurement | None) -> Values:
    if one is None:
        return _missing()
    low, high = one.interval
    return _cell(f"{one.value:,.4g}", one.value, f"{low:,.4g} to {high:,.4g}")


def _f1(recall: float | None, precision: float | None) -> float | None:
    if recall is None or precision is None:
        return None
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _most_confused_with(confusion: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    return "" if confusion is None else f"{classes[confusion['predicted']]} ({confusion['images']:,})"
