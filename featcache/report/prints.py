"""The pictures of a report as files for papers: an SVG and a PNG each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from featcache.report import charts
from featcache.report.benchmark_file import Benchmark
from featcache.report.charts import LARGEST_MATRIX, Chart
from featcache.report.content import Shelf
from featcache.report.drawing import png, svg
from featcache.report.figures import of_benchmark, of_one, of_runs
from featcache.report.page import per_cent
from featcache.report.plane import Plane
from featcache.report.subjects import Subject

Publish = Callable[[Path, bytes], None]


def write_pictures(shelf: Shelf, measured: Benchmark | None, folder: Path, publish: Publish) -> tuple[Path, ...]:
    """Draw every chart of a report into `folder`, as `<name>.svg` and `<name>.png`; the files."""
    written = []
    for name, chart in _named(shelf, measured):
        for path, content in (
            (folder / f"{name}.svg", svg(chart, "paper").encode()),
            (folder / f"{name}.png", png(chart)),
        ):
            publish(path, content)
            written.append(path)
    return tuple(written)


def _named(shelf: Shelf, measured: Benchmark | None) -> Iterator[tuple[str, Chart]]:
    for figure in of_runs(shelf.detailed):
        yield _slug(figure.title), figure.chart
    if measured is not None:
        yield "benchmark", of_benchmark(measured).chart
    for subject in shelf.detailed:
        for name, chart in _of_subject(subject):
            yield f"{_slug(subject.name)}-{name}", chart
    for name, chart in _maps(shelf):
        yield name, chart


def _of_subject(subject: Subject) -> Iterator[tuple[str, Chart]]:
    for figure in of_one(subject):
        yield _slug(figure.title), figure.chart
    yield "recall", charts.recalls(subject)
    if subject.measured.confusion is not None and len(subject.run.classes) <= LARGEST_MATRIX:
        yield "confusion", charts.confusion(subject)


def _maps(shelf: Shelf) -> Iterator[tuple[str, Chart]]:
    for album, planes in zip(shelf.albums, shelf.planes, strict=True):
        labels, classes = album.labels.tolist(), album.classes
        for site, plane in zip(album.sites, planes, strict=True):
            on = [] if plane is None else [row for row, place in enumerate(plane.places.tolist()) if place[0] >= 0]
            if plane is not None and on:
                name = _slug(f"map-{plane.method}-{site.subjects[0].run.features.label}-{site.subjects[0].part}")
                places = [(int(x), int(y)) for x, y in plane.places[on].tolist()]
                yield name, charts.feature_map(places, [classes[labels[row]] for row in on], _axes(plane))


def _axes(plane: Plane) -> tuple[str, str]:
    if plane.explained is None:
        return f"{plane.title}, first axis", "second axis"
    across, up = map(per_cent, plane.explained)
    return f"{plane.title}, first component ({across})", f"second component ({up})"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
