"""`write_report`: writes an HTML page about runs, and optionally its charts as files for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache.errors import CacheUnwritable, ReportError
from featcache.files import publish_bytes
from featcache.progress import StageProgress
from featcache.report import content, figure_files, figures
from featcache.report.audit_view import audit_view_of
from featcache.report.benchmark_file import Benchmark, read_benchmark
from featcache.report.content import ReportData
from featcache.report.embedding import METHOD_NAMES, Embedding2d, embedding_of
from featcache.report.image_sets import ImageSet, Rows, cache_of, image_sets_of, worst_mistakes
from featcache.report.page import per_cent, render_page
from featcache.report.run_results import RunResult, read_results
from featcache.report.thumbnails import no_thumbnails, pack_sheets, pictures_of
from featcache.runs.run import Run

if TYPE_CHECKING:
    from featcache.analysis import Audit

Map = Literal["pca", "tsne", "umap", "none"]
MAPS = (*METHOD_NAMES, "none")

MOST_BYTES = 4_900_000
"""The largest size of a page: small enough to be sent by mail."""

MOST_DETAILED = 8
"""The number of runs that are shown in detail; the others are only in the table."""


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """The result of `write_report`.

    Attributes:
        path: The page.
        nbytes: Its size in bytes.
        runs: The number of runs.
        images: The number of images on the page.
        pictures: How many of these images have a thumbnail.
        files: The chart files for papers.
        notes: Warnings that are also on the page.
    """

    path: Path
    nbytes: int
    runs: int
    images: int
    pictures: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            "report": str(self.path),
            "bytes": self.nbytes,
            "runs": self.runs,
            "images": self.images,
            "pictures": self.pictures,
            "files": [str(path) for path in self.files],
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        name = escape(str(self.path), quote=True)
        return f'<a href="{name}" target="_blank">{name}</a> ({self.nbytes / 1e6:.1f} MB, {self.runs} runs)'


def write_report(
    runs: Run | Path | str | Sequence[Run | Path | str] = (),
    path: Path | str = "report.html",
    *,
    map: Map = "pca",
    png: Path | str | None = None,
    benchmark: Path | str | None = None,
    audit: Audit | bool = False,
    data_dir: Path | str = "data",
    runs_dir: Path | str = "runs",
    progress: StageProgress | None = None,
) -> WrittenReport:
    """Write one HTML page about runs: a single file that makes no network requests.

    The page reports caches, images and labels that are missing or have changed since the runs were trained. It is
    written atomically and replaces an existing file. Nothing is downloaded.

    Args:
        runs: One or several runs, each a `Run`, its folder, its name in `runs_dir` or the beginning of the name; empty:
            all runs in `runs_dir`.
        path: The page to write.
        map: How the features are projected to two dimensions: "pca", "tsne", "umap", or "none" for no map.
        png: A folder for the charts as SVG and PNG files; None: no files.
        benchmark: The JSON file of `featcache benchmark`, to be shown as a chart.
        audit: True to audit the cache of the run with the best val accuracy too, or an `Audit` of it to show.
        data_dir: The folder of caches and named data sets.
        runs_dir: The folder of runs.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        The path and size of the page, what it shows, and its notes.

    Raises:
        HeadError: The records of a run are damaged, or there is no run.
        UnknownName: A run does not exist.
        MissingExtra: The map is "umap", and UMAP is not installed.
        ReportError: The map or the benchmark file is invalid, or the page cannot be written.
    """
    if map not in MAPS:
        raise ReportError(f"expected a map by {', '.join(MAPS)}, got {map!r}")
    if Path(path).is_dir():
        raise ReportError(f"{path} is a folder, and the page is a file", hint=f"--output {Path(path) / 'report.html'}")
    refs = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    results, left_out = read_results(refs, Path(runs_dir))
    measured = None if benchmark is None else read_benchmark(Path(benchmark))
    report, notes = _collect(results, map, Path(data_dir), progress)
    if audit is not False:
        report, audit_notes = _add_audit(report, None if audit is True else audit, Path(data_dir), progress)
        notes += audit_notes
    page = _page(report, map, measured)
    notes = [*left_out, *_table_only_note(report), *notes]
    report, html, notes = _add_pictures(report, page, notes, Path(data_dir) / "datasets", progress)
    _publish(Path(path), html)
    files = () if png is None else figure_files.write_figures(report, measured, Path(png), _publish)
    return WrittenReport(
        path=Path(path),
        nbytes=len(html),
        runs=len(results),
        images=sum(len(image_set.shown) for image_set in report.image_sets),
        pictures=sum(int((one.tiles >= 0).sum()) for one in report.thumbnails),
        files=files,
        notes=tuple(notes),
    )


def _collect(
    results: Sequence[RunResult], method: Map, data_dir: Path, progress: StageProgress | None
) -> tuple[ReportData, list[str]]:
    """The data of the report without pictures, and its notes."""
    by_val = sorted(results, key=lambda one: -one.run.training.val.accuracy)
    detailed = tuple(one for one in results if one in by_val[:MOST_DETAILED])
    image_sets = image_sets_of(detailed, data_dir / "features")
    embeddings = [_embeddings(image_set, method, progress) for image_set in image_sets]
    report = ReportData(
        results=tuple(results),
        detailed=detailed,
        best=by_val[0],
        image_sets=tuple(image_sets),
        thumbnails=tuple(no_thumbnails(len(image_set.shown)) for image_set in image_sets),
        embeddings=tuple(embeddings),
    )
    of_maps = [f"{one.title}: {note}" for maps in embeddings for one in maps if one is not None for note in one.notes]
    return report, [*(note for image_set in image_sets for note in image_set.notes), *of_maps]


def _embeddings(image_set: ImageSet, method: Map, progress: StageProgress | None) -> tuple[Embedding2d | None, ...]:
    embeddings = []
    for number, cached in enumerate(image_set.caches):
        if progress is not None:
            progress("mapping features", number, len(image_set.caches))
        embeddings.append(None if method == "none" else embedding_of(cached, image_set.labels, method))
    return tuple(embeddings)


def _add_audit(
    report: ReportData, given: Audit | None, data_dir: Path, progress: StageProgress | None
) -> tuple[ReportData, list[str]]:
    path, why = cache_of(report.best.run, data_dir / "features")
    if path is None:
        return report, [f"The audit is missing. {why}"]
    return replace(report, audit_view=audit_view_of(path, data_dir, given, progress)), []


def _table_only_note(report: ReportData) -> list[str]:
    more = len(report.results) - len(report.detailed)
    return [
        f"{len(report.detailed)} runs, the best on val, are shown in detail; {more} more are only in the table."
    ] * (more > 0)


def _add_pictures(
    report: ReportData, page: Mapping[str, Any], notes: list[str], datasets_dir: Path, progress: StageProgress | None
) -> tuple[ReportData, bytes, list[str]]:
    """The page with as many pictures, in as good a quality, as fit into `MOST_BYTES`."""
    pictures_and_reasons = [pictures_of(image_set, datasets_dir, progress) for image_set in report.image_sets]
    bare = render_page({**page, "notes": notes}, content.script_data(report)).encode()
    counts = [sum(image is not None for image in pictures) for pictures, _ in pictures_and_reasons]
    # A tile number needs up to four digits more than -1, and some notes may be added.
    free_bytes = MOST_BYTES - len(bare) - 4 * sum(counts) - 2_000
    thumbnails = [
        pack_sheets(pictures, free_bytes * count // max(1, sum(counts)), wanted=_most_wanted(image_set), notes=reasons)
        for image_set, count, (pictures, reasons) in zip(report.image_sets, counts, pictures_and_reasons, strict=True)
    ]
    report = replace(report, thumbnails=tuple(thumbnails))
    notes = list(dict.fromkeys([*notes, *(note for one in thumbnails for note in one.notes)]))
    return report, render_page({**page, "notes": notes}, content.script_data(report)).encode(), notes


def _most_wanted(image_set: ImageSet) -> Rows:
    """All positions of an image set: the worst mistakes of every run first, then the others in random order."""
    place = {row: position for position, row in enumerate(image_set.shown.tolist())}
    worst = [place[row] for one in image_set.results for row in worst_mistakes(one).tolist() if row in place]
    shuffled = np.random.default_rng(0).permutation(len(place)).tolist()
    return np.array(list(dict.fromkeys([*worst, *shuffled])), np.int64)


def _page(report: ReportData, method: Map, measured: Benchmark | None) -> dict[str, Any]:
    details = [content.detail(one) for one in report.detailed]
    pairs = content.pairs(report)
    return {
        "title": _title(report),
        "subtitle": _subtitle(report),
        "sections": _sections(pairs=bool(pairs), benchmark=measured is not None, audit=report.audit_view is not None),
        "tiles": _tiles(report),
        "run_columns": content.run_columns(report),
        "run_rows": content.run_rows(report),
        "run_charts": content.with_svg(figures.comparison_figures(report.detailed)),
        "pairs": pairs,
        "reference": report.best.name,
        "benchmark": None if measured is None else _benchmark(measured),
        "details": details,
        "first": report.detailed.index(report.best),
        "no_map": "No map was requested." if method == "none" else "There is no map: the features are not available.",
        "map_note": _map_note(report),
        "audit": None if report.audit_view is None else report.audit_view.content(),
        "footer": "Written by featcache. This page is self-contained and makes no network requests.",
    }


def _title(report: ReportData) -> str:
    sets = dict.fromkeys(one.run.features.cache_name.rsplit("-", 3)[0] for one in report.results)
    return " and ".join([*sets][:2]) + (" and others" if len(sets) > 2 else "")


def _subtitle(report: ReportData) -> str:
    runs, newest = len(report.results), max(one.run.created for one in report.results)
    backbones = ", ".join(dict.fromkeys(one.run.features.label for one in report.results))
    return f"{runs} trained head{'s' * (runs > 1)} on {backbones}; the newest of {newest[:10]}"


def _sections(*, pairs: bool, benchmark: bool, audit: bool) -> list[tuple[str, str]]:
    there = [
        ("runs", "Runs", True),
        ("pairs", "Significance", pairs),
        ("benchmark", "Benchmark", benchmark),
        ("detail-title", "One run in detail", True),
        ("mistakes-title", "Mistakes", True),
        ("map-heading", "Map", True),
        ("audit", "Audit", audit),
    ]
    return [(anchor, name) for anchor, name, shown in there if shown]


def _tiles(report: ReportData) -> list[dict[str, str]]:
    best = report.best
    measured, done = best.measured, best.run.training
    low, high = measured.accuracy_interval
    return [
        {
            "name": f"Accuracy on {best.part}",
            "value": per_cent(measured.accuracy),
            "more": f"{per_cent(low)} to {per_cent(high)}, of {best.name}",
        },
        {"name": "Trained in", "value": f"{done.seconds:,.1f} s", "more": f"{done.trainable:,} parameters"},
        {
            "name": "Calibration error",
            "value": per_cent(measured.calibration_error),
            "more": f"{per_cent(measured.scaled_calibration_error)} with temperature {measured.temperature:.2f}",
        },
        {
            "name": "Images",
            "value": f"{sum(done.images.values()):,}",
            "more": ", ".join(f"{count:,} {part}" for part, count in done.images.items()),
        },
        {"name": "Classes", "value": str(len(best.run.classes)), "more": f"{best.run.features.feature_dim:,} features"},
    ]


def _benchmark(measured: Benchmark) -> dict[str, Any]:
    (figure,) = content.with_svg([figures.benchmark_figure(measured)])
    return {"summary": measured.summary, "figure": figure}


def _map_note(report: ReportData) -> str:
    explained = [
        embedding.explained
        for embeddings in report.embeddings
        for embedding in embeddings
        if embedding is not None and embedding.explained is not None
    ]
    if len(explained) == 1:
        across, up = explained[0]
        return f"The axes show {per_cent(across)} and {per_cent(up)} of the variance of the features."
    return "Large distances on the map have no meaning." if not explained else ""


def _publish(path: Path, text: bytes) -> None:
    """Write a file atomically. Raises ReportError."""
    try:
        publish_bytes(path, text)
    except CacheUnwritable as error:
        raise ReportError(
            error.message, hint="choose another --output, or free some space; nothing was overwritten"
        ) from error
