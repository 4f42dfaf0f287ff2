"""The content of a page as plain values: tables for the template, and JSON for the script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.report.audit_view import AuditView
from featcache.report.charts import LARGEST_MATRIX
from featcache.report.drawing import svg
from featcache.report.embedding import UNITS, Embedding2d
from featcache.report.figures import Figure, run_figures
from featcache.report.image_sets import ImageSet
from featcache.report.page import per_cent
from featcache.report.run_results import RunResult
from featcache.report.thumbnails import COLUMNS, PER_SHEET, Thumbnails
from featcache.runs.comparison import compare_runs

MOST_CONFUSIONS = 60
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """The data of a report.

    `results`: all runs. `detailed`: the runs that are shown in detail. `best`: the run with the best val accuracy.
    `thumbnails` and `embeddings`: one entry per image set; an entry of `embeddings` has one per cache of the set.
    """

    results: tuple[RunResult, ...]
    detailed: tuple[RunResult, ...]
    best: RunResult
    image_sets: tuple[ImageSet, ...]
    thumbnails: tuple[Thumbnails, ...]
    embeddings: tuple[tuple[Embedding2d | None, ...], ...]
    audit_view: AuditView | None = None


def with_svg(figures: Sequence[Figure]) -> list[Values]:
    """Figures as values for the template, with their charts as SVG."""
    return [
        {field.name: getattr(figure, field.name) for field in fields(Figure)} | {"svg": svg(figure.chart)}
        for figure in figures
    ]


# --- the script's JSON -------------------------------------------------------------------------------------


def script_data(report: ReportData) -> Values:
    """The JSON of the page's script, in whole numbers: confidences in tenths of a per cent, -1 for a missing value."""
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
        "classes": list(image_set.classes),
        "ids": image_set.ids,
        "labels": image_set.labels.tolist(),
        **_sheet_data(thumbnails),
        "maps": [
            None if embedding is None or (embedding.positions < 0).all() else _map_data(embedding)
            for embedding in embeddings
        ],
    }


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
        "predicted": result.predicted[shown].tolist(),
        "confidences": np.rint(1000 * result.confidences[shown]).astype(int).tolist(),
    }


# --- comparison of runs --------------------------------------------------------------------------------

_RUN_COLUMNS = (
    *(("Run", False), ("Test accuracy", True), ("Val accuracy", True), ("Test loss", True)),
    *(("Calibration error", True), ("Epochs", True), ("Seconds", True), ("Parameters", True), ("Settings", False)),
)


def run_columns(report: ReportData) -> tuple[tuple[str, bool], ...]:
    """The columns of `run_rows`: (title, whether its values are numbers)."""
    return (*_RUN_COLUMNS, ("Features", False)) if _several_features(report) else _RUN_COLUMNS


def _several_features(report: ReportData) -> bool:
    return len({one.run.features.label for one in report.results}) > 1


def run_rows(report: ReportData) -> list[Values]:
    """The rows of the table of runs, one per run."""
    detailed = list(report.detailed)
    return [
        {
            "name": one.name,
            "best": one is report.best and len(report.results) > 1,
            "detail": detailed.index(one) if one in detailed else None,
            "cells": _cells(one) + ([_cell(one.run.features.label)] if _several_features(report) else []),
        }
        for one in report.results
    ]


def _cells(result: RunResult) -> list[Values]:
    done, measured = result.run.training, result.measured
    low, high = measured.accuracy_interval
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    kind = "candidates" if result.run.config.architecture.solved else f"best {done.best_epoch}"
    test = [
        _cell(per_cent(measured.accuracy, 2), measured.accuracy, f"{per_cent(low)} to {per_cent(high)}"),
        _cell(f"{result.score.loss:.4f}", result.score.loss),
    ]
    # Without a test split these cells are empty.
    accuracy, loss = test if done.test is not None else (_cell("", ""), _cell("", ""))
    return [
        accuracy,
        _cell(per_cent(done.val.accuracy, 2), done.val.accuracy),
        loss,
        _cell(per_cent(measured.calibration_error), measured.calibration_error),
        _cell(str(done.epochs), done.epochs, kind),
        _cell(f"{done.seconds:,.1f}", done.seconds, done.device),
        _cell(f"{done.trainable:,}", done.trainable),
        _cell(settings or "defaults"),
    ]


def _cell(text: str, value: float | str | None = None, more: str = "") -> Values:
    return {"text": text, "value": value, "more": more}


def pairs(report: ReportData) -> list[Values]:
    """Every other run compared with the best on val, on the same images of the same part."""
    return [_pair(report.best, one) for one in report.results if one is not report.best]


def _pair(reference: RunResult, other: RunResult) -> Values:
    if other.part != reference.part:
        return {"name": other.name, "problem": f"it was evaluated on {other.part}, the other on {reference.part}"}
    try:
        comparison = compare_runs(other.run, reference.run, other.part)
    except HeadError as error:
        return {"name": other.name, "problem": error.message}
    low, high = comparison.interval
    # Reports only show classifiers, so there is a p-value.
    p_value = comparison.p_value or 0.0
    return {
        "name": other.name,
        "problem": None,
        "difference": comparison.difference,
        "difference_text": f"{100 * comparison.difference:+.2f}",
        "interval": f"{100 * low:+.2f} to {100 * high:+.2f}",
        "only_this": comparison.only_first,
        "only_reference": comparison.only_second,
        "p": p_value,
        "p_text": "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}",
    }


# --- one run -----------------------------------------------------------------------------------------------


def detail(result: RunResult) -> Values:
    """All values that the template shows for one run."""
    return {
        "name": result.name,
        "notes": [*result.run.training.notes, *result.notes],
        "facts": _facts(result),
        "charts": with_svg(run_figures(result)),
        "classes": list(result.run.classes),
        "matrix": _matrix(result),
        "confused": _confusions(result),
        "per_class": _per_class(result),
    }


def _facts(result: RunResult) -> list[tuple[str, str]]:
    run, measured = result.run, result.measured
    images = ", ".join(f"{count:,} {part}" for part, count in run.training.images.items())
    facts = [
        ("evaluated on", f"{result.part}: {per_cent(measured.accuracy, 2)} of {sum(measured.images):,} images correct"),
        ("balanced", f"{per_cent(measured.balanced_accuracy)} mean recall, {per_cent(measured.macro_f1)} macro F1"),
        ("images", images),
        ("cache", f"{run.features.cache_name}, fingerprint {run.features.fingerprint[:12]}"),
        ("run", run.folder.name),
        ("trained", f"{run.created[:16].replace('T', ' ')} UTC, on {run.training.device}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
    ]
    top5 = [("top 5", per_cent(measured.top5))] if measured.top5 is not None else []
    return [*facts[:1], *top5, *facts[1:]]


def _matrix(result: RunResult) -> list[Values] | None:
    counts = result.measured.confusion
    if counts is None or len(counts) > LARGEST_MATRIX:
        return None
    return [{"counts": list(line), "total": max(1, sum(line))} for line in counts]


def _confusions(result: RunResult) -> list[Values]:
    labels, predicted = result.predictions.targets, result.predicted
    wrong = labels != predicted
    kinds, counts = np.unique(np.stack([labels[wrong], predicted[wrong]], axis=1), axis=0, return_counts=True)
    of_class = result.measured.images
    order = np.argsort(-counts, kind="stable")[:MOST_CONFUSIONS]
    return [
        {"label": label, "predicted": predicted, "images": count, "share": count / max(1, of_class[label])}
        for (label, predicted), count in zip(kinds[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _per_class(result: RunResult) -> list[Values]:
    measured, classes = result.measured, result.run.classes
    most_frequent = {one["label"]: one for one in reversed(_confusions(result))}
    return [
        {
            "name": name,
            "images": measured.images[label],
            "recall": measured.recall[label],
            "precision": measured.precision[label],
            "f1": _f1(measured.recall[label], measured.precision[label]),
            "most_confused_with": _most_confused_with(most_frequent.get(label), classes),
        }
        for label, name in enumerate(classes)
    ]


def _f1(recall: float | None, precision: float | None) -> float | None:
    if recall is None or precision is None:
        return None
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _most_confused_with(confusion: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    return "" if confusion is None else f"{classes[confusion['predicted']]} ({confusion['images']:,})"
