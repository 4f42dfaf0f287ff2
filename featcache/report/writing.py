"""`write_report`: from the names of runs to one HTML page, and the same pictures for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache.errors import CacheUnwritable, ReportError
from featcache.files import publish_bytes
from featcache.report import content, figures, prints
from featcache.report.albums import Album, Rows, albums_of, cache_of, worst_mistakes
from featcache.report.audited import audited
from featcache.report.benchmark_file import Benchmark, read_benchmark
from featcache.report.content import Shelf
from featcache.report.page import per_cent, rendered
from featcache.report.plane import METHOD_NAMES, Plane, plane_of
from featcache.report.subjects import Subject, read_subjects
from featcache.report.thumbnails import Progress, no_thumbnails, packed, pictures_of
from featcache.runs.run import Run

if TYPE_CHECKING:
    from featcache.analysis import Audit

Map = Literal["pca", "tsne", "umap", "none"]
MAPS = (*METHOD_NAMES, "none")

MOST_BYTES = 4_900_000
"""What a page may weigh: it opens from a disk, and is sent by mail."""

MOST_DETAILED = 8
"""Runs that are shown in detail; the others stand in the table."""


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A page that was written. `images` have a place on it, `pictures` of them a little picture.

    `files`: the pictures for papers. `notes`: what a reader of the page has to know, as it stands there too.
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
    progress: Progress | None = None,
) -> WrittenReport:
    """Write one HTML page about runs: it opens from disk, and asks the network for nothing.

    `runs`: one or several, as `Run`, folder, name in `runs_dir` or how that begins; none: all in `runs_dir`. `map`:
    how features are laid on a plane. `png`: a folder for the same pictures as SVG and PNG. `benchmark`: the JSON that
    `featcache benchmark` wrote. `audit`: whether the cache of the run that is best on val is audited too, or an `Audit`
    of it to show. `data_dir`: where caches and named sets are looked for; nothing is downloaded. `progress` is called
    with (stage, done, in all).

    What is gone or has changed since the runs were trained (caches, images, labels) is said on the page. The page
    appears under its name when it is whole; what stood there before is replaced.

    Raises HeadError for a run whose records are damaged, UnknownName for one that is not there, MissingExtra for a
    map by UMAP without it, ReportError for a benchmark that is none, or where the page cannot be written.
    """
    if map not in MAPS:
        raise ReportError(f"expected a map by {', '.join(MAPS)}, got {map!r}")
    refs = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    subjects, left_out = read_subjects(refs, Path(runs_dir))
    measured = None if benchmark is None else read_benchmark(Path(benchmark))
    shelf, notes = _shelf(subjects, map, Path(data_dir), progress)
    if audit is not False:
        shelf, unaudited = _with_audit(shelf, None if audit is True else audit, Path(data_dir), progress)
        notes += unaudited
    page = _page(shelf, map, measured)
    notes = [*left_out, *_left_to_the_table(shelf), *notes]
    shelf, html, notes = _with_pictures(shelf, page, notes, Path(data_dir) / "datasets", progress)
    _publish(Path(path), html)
    files = () if png is None else prints.write_pictures(shelf, measured, Path(png), _publish)
    return WrittenReport(
        path=Path(path),
        nbytes=len(html),
        runs=len(subjects),
        images=sum(len(album.shown) for album in shelf.albums),
        pictures=sum(int((one.tiles >= 0).sum()) for one in shelf.thumbnails),
        files=files,
        notes=tuple(notes),
    )


def _shelf(
    subjects: Sequence[Subject], method: Map, data_dir: Path, progress: Progress | None
) -> tuple[Shelf, list[str]]:
    """Everything but the pictures, and what has to be said of it."""
    by_val = sorted(subjects, key=lambda one: -one.run.training.val.accuracy)
    detailed = tuple(one for one in subjects if one in by_val[:MOST_DETAILED])
    albums = albums_of(detailed, data_dir / "features")
    planes = [_planes(album, method, progress) for album in albums]
    shelf = Shelf(
        subjects=tuple(subjects),
        detailed=detailed,
        best=by_val[0],
        albums=tuple(albums),
        thumbnails=tuple(no_thumbnails(len(album.shown)) for album in albums),
        planes=tuple(planes),
    )
    of_maps = [f"{one.title}: {note}" for found in planes for one in found if one is not None for note in one.notes]
    return shelf, [*(note for album in albums for note in album.notes), *of_maps]


def _planes(album: Album, method: Map, progress: Progress | None) -> tuple[Plane | None, ...]:
    found = []
    for number, site in enumerate(album.sites):
        if progress is not None:
            progress("mapping features", number, len(album.sites))
        found.append(None if method == "none" else plane_of(site, album.labels, method))
    return tuple(found)


def _with_audit(
    shelf: Shelf, given: Audit | None, data_dir: Path, progress: Progress | None
) -> tuple[Shelf, list[str]]:
    path, why = cache_of(shelf.best.run, data_dir / "features")
    if path is None:
        return shelf, [f"There is no audit. {why}"]
    return replace(shelf, audited=audited(path, data_dir, given, progress)), []


def _left_to_the_table(shelf: Shelf) -> list[str]:
    more = len(shelf.subjects) - len(shelf.detailed)
    return [f"{len(shelf.detailed)} runs, the best on val, are shown in detail; {more} more stand in the table."] * (
        more > 0
    )


def _with_pictures(
    shelf: Shelf, page: Mapping[str, Any], notes: list[str], datasets_dir: Path, progress: Progress | None
) -> tuple[Shelf, bytes, list[str]]:
    """The page with as many pictures, in as good a quality, as `MOST_BYTES` has room for."""
    found = [pictures_of(album, datasets_dir, progress) for album in shelf.albums]
    bare = rendered({**page, "notes": notes}, content.script_data(shelf)).encode()
    counts = [sum(image is not None for image in pictures) for pictures, _ in found]
    # A tile's number takes up to four digits more than -1; some sentences may be added.
    room = MOST_BYTES - len(bare) - 4 * sum(counts) - 2_000
    thumbnails = [
        packed(pictures, room * count // max(1, sum(counts)), wanted=_most_wanted(album), notes=reasons)
        for album, count, (pictures, reasons) in zip(shelf.albums, counts, found, strict=True)
    ]
    shelf = replace(shelf, thumbnails=tuple(thumbnails))
    notes = list(dict.fromkeys([*notes, *(note for one in thumbnails for note in one.notes)]))
    return shelf, rendered({**page, "notes": notes}, content.script_data(shelf)).encode(), notes


def _most_wanted(album: Album) -> Rows:
    """All positions of an album: every run's worst mistakes first, then the rest, evenly over the classes."""
    place = {row: position for position, row in enumerate(album.shown.tolist())}
    worst = [place[row] for one in album.subjects for row in worst_mistakes(one).tolist() if row in place]
    shuffled = np.random.default_rng(0).permutation(len(place)).tolist()
    return np.array(list(dict.fromkeys([*worst, *shuffled])), np.int64)


def _page(shelf: Shelf, method: Map, measured: Benchmark | None) -> dict[str, Any]:
    details = [content.detail(one) for one in shelf.detailed]
    pairs = content.pairs(shelf)
    return {
        "title": _title(shelf),
        "subtitle": _subtitle(shelf),
        "sections": _sections(pairs=bool(pairs), benchmark=measured is not None, audit=shelf.audited is not None),
        "tiles": _tiles(shelf),
        "run_columns": content.run_columns(shelf),
        "run_rows": content.run_rows(shelf),
        "run_charts": content.drawn(figures.of_runs(shelf.detailed)),
        "pairs": pairs,
        "reference": shelf.best.name,
        "benchmark": None if measured is None else _benchmark(measured),
        "details": details,
        "first": shelf.detailed.index(shelf.best),
        "no_map": "No map was asked for." if method == "none" else "There is no map: the features are not to be had.",
        "map_note": _map_note(shelf),
        "audit": None if shelf.audited is None else shelf.audited.content(),
        "footer": "Written by featcache. This page holds everything it shows and asks the network for nothing.",
    }


def _title(shelf: Shelf) -> str:
    sets = dict.fromkeys(one.run.features.cache_name.rsplit("-", 3)[0] for one in shelf.subjects)
    return " and ".join([*sets][:2]) + (" and others" if len(sets) > 2 else "")


def _subtitle(shelf: Shelf) -> str:
    runs, newest = len(shelf.subjects), max(one.run.created for one in shelf.subjects)
    backbones = ", ".join(dict.fromkeys(one.run.features.label for one in shelf.subjects))
    return f"{runs} trained head{'s' * (runs > 1)} on {backbones}; the newest of {newest[:10]}"


def _sections(*, pairs: bool, benchmark: bool, audit: bool) -> list[tuple[str, str]]:
    there = [
        ("runs", "Runs", True),
        ("pairs", "Better, or luck?", pairs),
        ("benchmark", "Benchmark", benchmark),
        ("look-title", "One run in detail", True),
        ("mistakes-title", "Mistakes", True),
        ("map-heading", "Map", True),
        ("audit", "Audit", audit),
    ]
    return [(anchor, name) for anchor, name, shown in there if shown]


def _tiles(shelf: Shelf) -> list[dict[str, str]]:
    best = shelf.best
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
    (figure,) = content.drawn([figures.of_benchmark(measured)])
    return {"told": measured.told, "figure": figure}


def _map_note(shelf: Shelf) -> str:
    explained = [
        plane.explained
        for found in shelf.planes
        for plane in found
        if plane is not None and plane.explained is not None
    ]
    if len(explained) == 1:
        across, up = explained[0]
        return f"The axes show {per_cent(across)} and {per_cent(up)} of what differs between the features."
    return "Distances across the map mean little." if not explained else ""


def _publish(path: Path, text: bytes) -> None:
    """Write a file whole or not at all. Raises ReportError."""
    try:
        publish_bytes(path, text)
    except CacheUnwritable as error:
        raise ReportError(
            error.message, hint="another --output, or free some space; nothing was overwritten"
        ) from error
