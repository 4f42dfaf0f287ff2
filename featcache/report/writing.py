"""`write_report`: writes an HTML page about runs and sweeps, and optionally its figures as files for papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache.display import Shown, frame_html
from featcache.errors import CacheUnwritable, ReportError
from featcache.files import publish_bytes
from featcache.heads.metric_records import ClassMetrics
from featcache.progress import StageProgress, stage_progress
from featcache.report import content
from featcache.report.audit_view import audit_view_of
from featcache.report.benchmark_file import Benchmark, read_benchmark
from featcache.report.conclusion import groups_of
from featcache.report.content import ReportData
from featcache.report.drawing import Figure, slug, write_figures
from featcache.report.embedding import METHOD_NAMES, Embedding2d, embedding_of
from featcache.report.examples import examples_of, most_wanted, target_text
from featcache.report.image_sets import ImageSet, cache_of, image_sets_of
from featcache.report.page import per_cent, render_page
from featcache.report.run_figures import comparison_figures, feature_map, paper_figures
from featcache.report.run_results import METRICS, Inputs, interval_text, read_inputs, score_text
from featcache.report.sweep_figures import sweep_figures
from featcache.report.thumbnails import no_thumbnails, pack_sheets, pictures_of
from featcache.runs.run import Run
from featcache.sweeps.records import Sweep
from featcache.text import human_bytes

if TYPE_CHECKING:
    from featcache.analysis import Audit

Map = Literal["pca", "tsne", "umap", "none"]
MAPS = (*METHOD_NAMES, "none")

MOST_BYTES = 4_900_000
"""The largest size of a page: small enough to be sent by mail."""

MOST_DETAILED = 8
"""The number of runs that are shown in detail; the others are only in the table."""


@dataclass(frozen=True, kw_only=True, repr=False)
class WrittenReport(Shown):
    """The result of `write_report`.

    Attributes:
        path: The page.
        nbytes: Its size in bytes.
        runs: The number of runs.
        images: The number of images on the page.
        pictures: How many of these images have a thumbnail.
        files: The files of figures for papers.
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
        """The page itself, inside the notebook; its fields where the page is no longer there."""
        try:
            page = self.path.read_text(encoding="utf-8")
        except OSError:
            return super()._repr_html_()
        return frame_html(page, f"{self.path}, {human_bytes(self.nbytes)}")


def write_report(
    runs: Run | Sweep | Path | str | Sequence[Run | Sweep | Path | str] = (),
    path: Path | str = "report.html",
    *,
    map: Map = "pca",
    figures: Path | str | None = None,
    benchmark: Path | str | None = None,
    audit: Audit | bool = False,
    data_dir: Path | str = "data",
    runs_dir: Path | str = "runs",
    progress: StageProgress | bool | None = None,
) -> WrittenReport:
    """Write one HTML page about runs and sweeps: a single file that makes no network requests.

    The page reports caches, images and labels that are missing or have changed since the runs were trained. It is
    written atomically and replaces an existing file. Nothing is downloaded.

    Args:
        runs: One or several runs and sweeps, each a `Run` or `Sweep`, its folder, its name in `runs_dir` or the
            beginning of the name; empty: all in `runs_dir`. A sweep is drawn, and its chosen run is shown.
        path: The page to write.
        map: How the features are projected to two dimensions: "pca", "tsne", "umap", or "none" for no map.
        figures: A folder for the figures as SVG, PDF and PNG files, 3.3 inches wide as a column; None: no files.
        benchmark: The JSON file of `featcache benchmark`, to be shown as a chart.
        audit: True to audit the cache of the run with the best val accuracy too, or an `Audit` of it to show.
        data_dir: The folder of caches and named data sets.
        runs_dir: The folder of runs.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, steps done, steps in all).

    Returns:
        The path and size of the page, what it shows, and its notes.

    Raises:
        HeadError: The records of a run are damaged, or there is no run.
        UnknownName: A run does not exist.
        MissingExtra: The map is "umap", and UMAP is not installed.
        ReportError: The map or the benchmark file is invalid, or the page cannot be written.
    """
    with stage_progress(progress) as advance:
        return _write(runs, path, map, figures, benchmark, audit, data_dir, runs_dir, advance)


def _write(
    runs: Run | Sweep | Path | str | Sequence[Run | Sweep | Path | str],
    path: Path | str,
    map: Map,
    figures: Path | str | None,
    benchmark: Path | str | None,
    audit: Audit | bool,
    data_dir: Path | str,
    runs_dir: Path | str,
    progress: StageProgress,
) -> WrittenReport:
    """`write_report`, with a function that is called with the progress."""
    if map not in MAPS:
        raise ReportError(f"expected a map by {', '.join(MAPS)}, got {map!r}")
    if Path(path).is_dir():
        raise ReportError(f"{path} is a folder, and the page is a file", hint=f"--output {Path(path) / 'report.html'}")
    refs = [runs] if isinstance(runs, Run | Sweep | Path | str) else list(runs)
    inputs = read_inputs(refs, Path(runs_dir))
    measured = None if benchmark is None else read_benchmark(Path(benchmark))
    report, notes = _collect(inputs, map, Path(data_dir), progress)
    if audit is not False:
        report, audit_notes = _add_audit(report, None if audit is True else audit, Path(data_dir), progress)
        notes += audit_notes
    page = _page(report, map, measured)
    notes = [*inputs.left_out, *_table_only_note(report), *notes]
    report, html, notes = _add_pictures(report, page, notes, Path(data_dir) / "datasets", progress)
    _publish(Path(path), html)
    files = () if figures is None else write_figures(_figures(report, measured), Path(figures), _publish)
    return WrittenReport(
        path=Path(path),
        nbytes=len(html),
        runs=len(report.results),
        images=sum(len(image_set.shown) for image_set in report.image_sets),
        pictures=sum(int((one.tiles >= 0).sum()) for one in report.thumbnails),
        files=files,
        notes=tuple(notes),
    )


def _collect(
    inputs: Inputs, method: Map, data_dir: Path, progress: StageProgress | None
) -> tuple[ReportData, list[str]]:
    """The data of the report without pictures, and its notes."""
    groups = groups_of(inputs.results)
    ranked = [sorted(group.results, key=lambda one: -one.run.training.val.value) for group in groups]
    # The best of each target first, then the second best.
    by_rank = [one for line in zip_longest(*ranked) for one in line if one is not None]
    chosen = by_rank[:MOST_DETAILED]
    detailed = tuple(one for one in inputs.results if one in chosen)
    image_sets = image_sets_of(detailed, data_dir / "features")
    embeddings = [_embeddings(image_set, method, progress) for image_set in image_sets]
    report = ReportData(
        groups=tuple(groups),
        sweeps=inputs.sweeps,
        detailed=detailed,
        image_sets=tuple(image_sets),
        thumbnails=tuple(no_thumbnails(len(image_set.shown)) for image_set in image_sets),
        embeddings=tuple(embeddings),
    )
    of_maps = [f"{one.title}: {note}" for maps in embeddings for one in maps if one is not None for note in one.notes]
    return report, [*(note for image_set in image_sets for note in image_set.notes), *of_maps]


def _embeddings(image_set: ImageSet, method: Map, progress: StageProgress | None) -> tuple[Embedding2d | None, ...]:
    embeddings = []
    labels = image_set.targets if image_set.target.kind == "classes" else None
    for number, cached in enumerate(image_set.caches):
        if progress is not None:
            progress("mapping features", number, len(image_set.caches))
        embeddings.append(None if method == "none" else embedding_of(cached, labels, method))
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
    report: ReportData, page: dict[str, Any], notes: list[str], datasets_dir: Path, progress: StageProgress | None
) -> tuple[ReportData, bytes, list[str]]:
    """The page with as many pictures, in as good a quality, as fit into `MOST_BYTES`."""
    pictures_and_reasons = [pictures_of(image_set, datasets_dir, progress) for image_set in report.image_sets]
    first = next(place for place, image_set in enumerate(report.image_sets) if report.best in image_set.results)
    examples, sheet = examples_of(report.image_sets[first], pictures_and_reasons[first][0])
    page = {**page, "examples": examples, "example_sheet": sheet}
    bare = render_page({**page, "notes": notes}, content.script_data(report)).encode()
    counts = [sum(image is not None for image in pictures) for pictures, _ in pictures_and_reasons]
    # A tile number needs up to four digits more than -1, and some notes may be added.
    free_bytes = max(0, MOST_BYTES - len(bare) - 4 * sum(counts) - 2_000)
    thumbnails = [
        pack_sheets(pictures, free_bytes * count // max(1, sum(counts)), wanted=most_wanted(image_set), notes=reasons)
        for image_set, count, (pictures, reasons) in zip(report.image_sets, counts, pictures_and_reasons, strict=True)
    ]
    report = replace(report, thumbnails=tuple(thumbnails))
    notes = list(dict.fromkeys([*notes, *(note for one in thumbnails for note in one.notes)]))
    return report, render_page({**page, "notes": notes}, content.script_data(report)).encode(), notes


def _page(report: ReportData, method: Map, measured: Benchmark | None) -> dict[str, Any]:
    return {
        "title": _title(report),
        "subtitle": _subtitle(report),
        "sections": _sections(report, benchmark=measured is not None),
        "tiles": _tiles(report),
        "sweeps": [content.sweep_content(one) for one in report.sweeps],
        "groups": [content.group_content(report, group) for group in report.groups],
        "benchmark": None if measured is None else _benchmark(measured),
        "details": [content.detail(one) for one in report.detailed],
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
    newest = max(one.run.created for one in report.results)
    backbones = list(dict.fromkeys(one.run.features.label for one in report.results))
    more = f" and {len(backbones) - 3} others" if len(backbones) > 3 else ""
    counts = [
        f"{len(some)} {name}{'s' * (len(some) > 1)}"
        for some, name in ((report.sweeps, "sweep"), (report.results, "trained head"))
        if some
    ]
    return f"{' and '.join(counts)} on {', '.join(backbones[:3])}{more}; the newest of {newest[:10]}"


def _sections(report: ReportData, *, benchmark: bool) -> list[tuple[str, str]]:
    there = [
        ("sweeps", "Sweep" if len(report.sweeps) == 1 else "Sweeps", bool(report.sweeps)),
        ("runs", "Runs", True),
        ("benchmark", "Benchmark", benchmark),
        ("detail-title", "One run", True),
        ("mistakes-title", "Mistakes", True),
        ("map-heading", "Map", True),
        ("audit", "Audit", report.audit_view is not None),
    ]
    return [(anchor, name) for anchor, name, shown in there if shown]


def _tiles(report: ReportData) -> list[dict[str, str]]:
    best = report.best
    done, names = best.run.training, best.target.names
    kind = {"classes": "Classes", "lists": "Labels", "numbers": "Columns"}[best.target.kind]
    metric = METRICS[best.metric]
    tiles = [
        {
            "name": f"{metric[0].upper()}{metric[1:]} on {best.part}",
            "value": score_text(best.score.value, best.metric),
            "more": interval_text(best.interval, best.metric),
        },
        {"name": "Trained in", "value": f"{done.seconds:,.1f} s", "more": f"{done.trainable:,} parameters"},
        {
            "name": "Images",
            "value": f"{sum(done.images.values()):,}",
            "more": ", ".join(f"{count:,} {part}" for part, count in done.images.items()),
        },
        {"name": kind, "value": str(len(names)), "more": f"{best.run.features.feature_dim:,} features"},
    ]
    if isinstance(best.measured, ClassMetrics):
        calibrated = per_cent(best.measured.scaled_calibration_error)
        tiles.insert(
            2,
            {
                "name": "Calibration error",
                "value": per_cent(best.measured.calibration_error),
                "more": f"{calibrated} with temperature {best.measured.temperature:.2f}",
            },
        )
    return tiles


def _benchmark(measured: Benchmark) -> dict[str, Any]:
    (figure,) = content.with_svg([measured.figure()])
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


def _figures(report: ReportData, measured: Benchmark | None) -> Iterator[tuple[str, Figure]]:
    """All figures of the report with the names of their files."""
    several = len(report.groups) > 1
    for sweep in report.sweeps:
        name = "sweep" if len(report.sweeps) == 1 else sweep.folder.name
        yield from ((slug(f"{name}-{figure.title}"), figure) for figure in sweep_figures(sweep))
    for group in report.groups:
        for figure in comparison_figures(group.results):
            yield slug(f"{group.title}-{figure.title}" if several else figure.title), figure
    if measured is not None:
        yield "benchmark", measured.figure()
    for result in report.detailed:
        yield from ((slug(f"{result.name}-{figure.title}"), figure) for figure in paper_figures(result))
    for image_set, embeddings in zip(report.image_sets, report.embeddings, strict=True):
        for cached, embedding in zip(image_set.caches, embeddings, strict=True):
            if embedding is not None and (embedding.positions >= 0).any():
                features = cached.results[0].run.features.label
                name = slug(f"map-{embedding.method}-{features}-{cached.results[0].part}")
                yield name, _map_figure(image_set, embedding)


def _map_figure(image_set: ImageSet, embedding: Embedding2d) -> Figure:
    on = np.flatnonzero(embedding.positions[:, 0] >= 0).tolist()
    target, targets = image_set.target, image_set.targets
    by_number = target.kind == "numbers"
    groups = [float(targets[row, 0]) if by_number else target_text(target, targets[row]) for row in on]
    across, up = embedding.explained or (None, None)
    axes = (
        (f"{embedding.title}, first axis", "second axis")
        if across is None
        else (f"{embedding.title}, first component ({per_cent(across)})", f"second component ({per_cent(up)})")
    )
    return feature_map([(x, y) for x, y in embedding.positions[on].tolist()], groups, axes)


def _publish(path: Path, text: bytes) -> None:
    """Write a file atomically. Raises ReportError."""
    try:
        publish_bytes(path, text)
    except CacheUnwritable as error:
        raise ReportError(
            error.message, hint="choose another --output, or free some space; nothing was overwritten"
        ) from error
