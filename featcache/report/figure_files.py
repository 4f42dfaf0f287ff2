"""Writes the charts of a report as files for papers: an SVG and a PNG file each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from featcache.report import charts
from featcache.report.benchmark_file import Benchmark
from featcache.report.charts import LARGEST_MATRIX, Chart
from featcache.report.content import ReportData
from featcache.report.drawing import png, svg
from featcache.report.embedding import Embedding2d
from featcache.report.figures import benchmark_figure, comparison_figures, run_figures
from featcache.report.page import per_cent
from featcache.report.run_results import RunResult

Publish = Callable[[Path, bytes], None]


def write_figures(report: ReportData, measured: Benchmark | None, folder: Path, publish: Publish) -> tuple[Path, ...]:
    """Write every chart of a report to `folder` as `<name>.svg` and `<name>.png`. Returns the paths."""
    written = []
    for name, chart in _charts_by_name(report, measured):
        for path, content in (
            (folder / f"{name}.svg", svg(chart, "paper").encode()),
            (folder / f"{name}.png", png(chart)),
        ):
            publish(path, content)
            written.append(path)
    return tuple(written)


def _charts_by_name(report: ReportData, measured: Benchmark | None) -> Iterator[tuple[str, Chart]]:
    for figure in comparison_figures(report.detailed):
        yield _slug(figure.title), figure.chart
    if measured is not None:
        yield "benchmark", benchmark_figure(measured).chart
    for result in report.detailed:
        for name, chart in _of_result(result):
            yield f"{_slug(result.name)}-{name}", chart
    for name, chart in _maps(report):
        yield name, chart


def _of_result(result: RunResult) -> Iterator[tuple[str, Chart]]:
    for figure in run_figures(result):
        yield _slug(figure.title), figure.chart
    yield "recall", charts.recalls(result)
    if result.measured.confusion is not None and len(result.run.classes) <= LARGEST_MATRIX:
        yield "confusion", charts.confusion(result)


def _maps(report: ReportData) -> Iterator[tuple[str, Chart]]:
    for image_set, embeddings in zip(report.image_sets, report.embeddings, strict=True):
        labels, classes = image_set.labels.tolist(), image_set.classes
        for cached, embedding in zip(image_set.caches, embeddings, strict=True):
            on = [] if embedding is None else [row for row, (x, _) in enumerate(embedding.positions.tolist()) if x >= 0]
            if embedding is not None and on:
                name = _slug(f"map-{embedding.method}-{cached.results[0].run.features.label}-{cached.results[0].part}")
                positions = [(int(x), int(y)) for x, y in embedding.positions[on].tolist()]
                yield name, charts.feature_map(positions, [classes[labels[row]] for row in on], _axes(embedding))


def _axes(embedding: Embedding2d) -> tuple[str, str]:
    if embedding.explained is None:
        return f"{embedding.title}, first axis", "second axis"
    across, up = map(per_cent, embedding.explained)
    return f"{embedding.title}, first component ({across})", f"second component ({up})"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
