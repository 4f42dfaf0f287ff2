"""What a page shows, as plain values: the template's tables, and the JSON that its script reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from featcache.errors import HeadError
from featcache.report.albums import Album
from featcache.report.audited import Audited
from featcache.report.charts import LARGEST_MATRIX
from featcache.report.drawing import svg
from featcache.report.figures import Figure, of_one
from featcache.report.page import per_cent
from featcache.report.plane import UNITS, Plane
from featcache.report.subjects import Subject
from featcache.report.thumbnails import COLUMNS, PER_SHEET, Thumbnails
from featcache.runs.comparison import compare_runs

MOST_CONFUSIONS = 60
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shelf:
    """What was found: all runs, those shown in detail, and the best on val.

    `albums` with `thumbnails` each, and a plane for each of their sites in `planes`.
    """

    subjects: tuple[Subject, ...]
    detailed: tuple[Subject, ...]
    best: Subject
    albums: tuple[Album, ...]
    thumbnails: tuple[Thumbnails, ...]
    planes: tuple[tuple[Plane | None, ...], ...]
    audited: Audited | None = None


def drawn(figures: Sequence[Figure]) -> list[Values]:
    """Figures with their SVG, as the template shows them."""
    return [
        {field.name: getattr(figure, field.name) for field in fields(Figure)} | {"svg": svg(figure.chart)}
        for figure in figures
    ]


# --- the script's JSON -------------------------------------------------------------------------------------


def script_data(shelf: Shelf) -> Values:
    """Images, answers and places, in whole numbers: confidences in tenths of a per cent, -1 where there is nothing."""
    return {
        "columns": COLUMNS,
        "perSheet": PER_SHEET,
        "first": shelf.detailed.index(shelf.best),
        # What an audit names stands last.
        "albums": [
            *(_album_data(*found) for found in zip(shelf.albums, shelf.thumbnails, shelf.planes, strict=True)),
            *([] if shelf.audited is None else [_audited_data(shelf.audited)]),
        ],
        "runs": [_run_data(shelf, one) for one in shelf.detailed],
    }


def _audited_data(audited: Audited) -> Values:
    return {"ids": [sample.id for sample in audited.samples], **_sheet_data(audited.thumbnails)}


def _sheet_data(thumbnails: Thumbnails) -> Values:
    return {"sheets": list(thumbnails.sheets), "side": thumbnails.side, "tiles": thumbnails.tiles.tolist()}


def _album_data(album: Album, thumbnails: Thumbnails, planes: Sequence[Plane | None]) -> Values:
    return {
        "classes": list(album.classes),
        "ids": album.ids,
        "labels": album.labels.tolist(),
        **_sheet_data(thumbnails),
        "maps": [None if plane is None or (plane.places < 0).all() else _map_data(plane) for plane in planes],
    }


def _map_data(plane: Plane) -> Values:
    return {
        "title": plane.title,
        "highest": np.clip(plane.places.max(axis=0), 1, UNITS).tolist(),
        "x": plane.places[:, 0].tolist(),
        "y": plane.places[:, 1].tolist(),
    }


def _run_data(shelf: Shelf, subject: Subject) -> Values:
    number, site = next(
        (number, place)
        for number, album in enumerate(shelf.albums)
        for place, site in enumerate(album.sites)
        if subject in site.subjects
    )
    shown = shelf.albums[number].shown
    return {
        "album": number,
        "map": site,
        "answers": subject.answers[shown].tolist(),
        "confidences": np.rint(1000 * subject.confidences[shown]).astype(int).tolist(),
    }


# --- runs beside each other --------------------------------------------------------------------------------

_RUN_COLUMNS = (
    *(("Run", False), ("Test accuracy", True), ("Val accuracy", True), ("Test loss", True)),
    *(("Calibration error", True), ("Epochs", True), ("Seconds", True), ("Parameters", True), ("Settings", False)),
)


def run_columns(shelf: Shelf) -> tuple[tuple[str, bool], ...]:
    """What the cells of `run_rows` are, and whether they are numbers."""
    return (*_RUN_COLUMNS, ("Features", False)) if _several_features(shelf) else _RUN_COLUMNS


def _several_features(shelf: Shelf) -> bool:
    return len({one.run.features.label for one in shelf.subjects}) > 1


def run_rows(shelf: Shelf) -> list[Values]:
    """A row a run."""
    detailed = list(shelf.detailed)
    return [
        {
            "name": one.name,
            "best": one is shelf.best and len(shelf.subjects) > 1,
            "look": detailed.index(one) if one in detailed else None,
            "cells": _cells(one) + ([_cell(one.run.features.label)] if _several_features(shelf) else []),
        }
        for one in shelf.subjects
    ]


def _cells(subject: Subject) -> list[Values]:
    done, measured = subject.run.training, subject.measured
    low, high = measured.accuracy_interval
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in subject.settings.items())
    kind = "tried" if subject.run.config.architecture.solved else f"best {done.best_epoch}"
    test = [
        _cell(per_cent(measured.accuracy, 2), measured.accuracy, f"{per_cent(low)} to {per_cent(high)}"),
        _cell(f"{subject.score.loss:.4f}", subject.score.loss),
    ]
    # Without a test split there is nothing to say of it.
    accuracy, loss = test if done.test is not None else (_cell("", ""), _cell("", ""))
    return [
        accuracy,
        _cell(per_cent(done.val.accuracy, 2), done.val.accuracy),
        loss,
        _cell(per_cent(measured.calibration_error), measured.calibration_error),
        _cell(str(done.epochs), done.epochs, kind),
        _cell(f"{done.seconds:,.1f}", done.seconds, done.device),
        _cell(f"{done.trainable:,}", done.trainable),
        _cell(settings or "as by default"),
    ]


def _cell(text: str, value: float | str | None = None, more: str = "") -> Values:
    return {"text": text, "value": value, "more": more}


def pairs(shelf: Shelf) -> list[Values]:
    """Every run beside the best on val, on the same images of the same part."""
    return [_pair(shelf.best, one) for one in shelf.subjects if one is not shelf.best]


def _pair(reference: Subject, other: Subject) -> Values:
    if other.part != reference.part:
        return {"name": other.name, "problem": f"it was judged on {other.part}, the other on {reference.part}"}
    try:
        found = compare_runs(other.run, reference.run, other.part)
    except HeadError as error:
        return {"name": other.name, "problem": error.message}
    low, high = found.interval
    # Subjects tell classes apart, so there is one.
    p_value = found.p_value or 0.0
    return {
        "name": other.name,
        "problem": None,
        "difference": found.difference,
        "difference_text": f"{100 * found.difference:+.2f}",
        "interval": f"{100 * low:+.2f} to {100 * high:+.2f}",
        "only_this": found.only_first,
        "only_reference": found.only_second,
        "p": p_value,
        "p_text": "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}",
    }


# --- one run -----------------------------------------------------------------------------------------------


def detail(subject: Subject) -> Values:
    """All that is shown of one run."""
    return {
        "name": subject.name,
        "notes": [*subject.run.training.notes, *subject.notes],
        "facts": _facts(subject),
        "charts": drawn(of_one(subject)),
        "classes": list(subject.run.classes),
        "matrix": _matrix(subject),
        "confused": _confused(subject),
        "per_class": _per_class(subject),
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    run, measured = subject.run, subject.measured
    images = ", ".join(f"{count:,} {part}" for part, count in run.training.images.items())
    facts = [
        ("judged on", f"{subject.part}: {per_cent(measured.accuracy, 2)} of {sum(measured.images):,} images are right"),
        ("balanced", f"{per_cent(measured.balanced_accuracy)} mean recall, {per_cent(measured.macro_f1)} macro F1"),
        ("images", images),
        ("cache", f"{run.features.cache_name}, fingerprint {run.features.fingerprint[:12]}"),
        ("run", run.folder.name),
        ("trained", f"{run.created[:16].replace('T', ' ')} UTC, on {run.training.device}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
    ]
    top5 = [("top 5", per_cent(measured.top5))] if measured.top5 is not None else []
    return [*facts[:1], *top5, *facts[1:]]


def _matrix(subject: Subject) -> list[Values] | None:
    counts = subject.measured.confusion
    if counts is None or len(counts) > LARGEST_MATRIX:
        return None
    return [{"counts": list(line), "total": max(1, sum(line))} for line in counts]


def _confused(subject: Subject) -> list[Values]:
    labels, answers = subject.said.targets, subject.answers
    wrong = labels != answers
    kinds, counts = np.unique(np.stack([labels[wrong], answers[wrong]], axis=1), axis=0, return_counts=True)
    of_class = subject.measured.images
    order = np.argsort(-counts, kind="stable")[:MOST_CONFUSIONS]
    return [
        {"label": label, "answer": answer, "images": count, "share": count / max(1, of_class[label])}
        for (label, answer), count in zip(kinds[order].tolist(), counts[order].tolist(), strict=True)
    ]


def _per_class(subject: Subject) -> list[Values]:
    measured, classes = subject.measured, subject.run.classes
    taken = {one["label"]: one for one in reversed(_confused(subject))}
    return [
        {
            "name": name,
            "images": measured.images[label],
            "recall": measured.recall[label],
            "precision": measured.precision[label],
            "f1": _f1(measured.recall[label], measured.precision[label]),
            "taken_for": _taken_for(taken.get(label), classes),
        }
        for label, name in enumerate(classes)
    ]


def _f1(recall: float | None, precision: float | None) -> float | None:
    if recall is None or precision is None:
        return None
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _taken_for(confusion: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    return "" if confusion is None else f"{classes[confusion['answer']]} ({confusion['images']:,})"
