"""Export a cache to other formats than HDF5: rows with ids, labels, splits and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.columns import SEPARATOR
from featcache.config import accepts, divide_options
from featcache.display import Shown
from featcache.errors import InvalidOption, UnknownName
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.files import unwritable
from featcache.inference.array_files import bytes_of, write_npy, write_npz, write_safetensors
from featcache.inference.cache_rows import Advance, CacheRows
from featcache.inference.classifier import head_outputs
from featcache.inference.options import CACHE_FORMATS, FORMATS_WITH_VIEWS, POINT_FORMATS, CacheExportOptions
from featcache.inference.prediction import labels_of, thresholds_of
from featcache.inference.similarity import CachedImages, RunImages
from featcache.inference.table_files import write_csv, write_parquet
from featcache.inference.viewers import Answers, write_atlas, write_projector
from featcache.progress import StageProgress
from featcache.rows.joining import CacheLayers
from featcache.runs.run import Run

Write = Callable[[CacheRows, Path, Advance], None]
# Of the others, the projector and the atlas take further arguments.
_WRITERS: Mapping[str, Write] = {
    "npz": write_npz,
    "npy": write_npy,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
    "csv": write_csv,
}


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportedCache(Shown):
    """A published file or folder.

    Attributes:
        path: The file or folder.
        format: Its format.
        cache: The name of the cache.
        rows: Rows by split.
        feature_dim: D by layer.
        views: Views of each train image in it, including the plain one.
        nbytes: Its size in bytes.
        run: For atlas: the folder of the run whose predictions are in it; None for none.
        map: For atlas: how x and y were made.
    """

    path: Path
    format: str
    cache: str
    rows: Mapping[str, int]
    feature_dim: Mapping[str, int]
    views: int
    nbytes: int
    run: str | None = None
    map: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache export CACHE --json`."""
        return {
            "path": str(self.path),
            "format": self.format,
            "cache": self.cache,
            "rows": dict(self.rows),
            "feature_dim": dict(self.feature_dim),
            "views": self.views,
            "bytes": self.nbytes,
            "run": self.run,
            "map": self.map,
        }


@accepts(CacheExportOptions)
def export_cache(
    cache: FeatureCache | Run | str | Path,
    path: str | Path,
    format: str,
    *,
    head: Callable[..., Any] | None = None,
    data_dir: str | Path = "data",
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportedCache:
    """Write a cache's rows in another format.

    The rows of all splits follow each other; a column or array `split` names the split of each row. Memory does not
    grow with the cache, and the file or folder appears only when it is complete.

    Args:
        cache: An open cache, or its path. For "atlas" also a Run: its caches are read, and its predictions are written.
        path: The file or folder to write.
        format: "npz", "npy" or "safetensors", which also contain the augmented views of train images, as separate
            arrays; or "parquet", "csv", "projector" or "atlas", with one row per image.
        head: Makes the head, for a Run whose head is a module of your own that cannot be imported by its path.
        data_dir: The folder of downloaded data sets, for `images`, and of caches that a run was trained on.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, rows done, rows in all).
        reporter: Receives progress, and a warning where augmented views are left out, in place of the logger
            "featcache" and of `progress`.
        {options}

    Returns:
        The file or folder, and what it contains.

    Raises:
        UnknownName: There is no such format, split or layer.
        InvalidOption: npy or projector would overwrite something, or an option is given for another format.
        MissingExtra: A package that the format needs is not installed.
        CacheError: The cache cannot be read, or the disk cannot be written.
        ExportError: `images` is given, and some are missing.
    """
    own = ("head", "data_dir", "progress", "reporter")
    what = CacheExportOptions(**divide_options(options, "export_cache", CacheExportOptions, also=own)[0])
    _require_fitting(format, what, cache)
    path, data_dir = Path(path), Path(data_dir)
    with ExitStack() as opened:
        reporter = reporter or opened.enter_context(ProgressReporter(progress))
        images: CachedImages | None = None
        if isinstance(cache, Run):
            answers, run = _answers_of(cache, head), str(cache.folder)
            images = opened.enter_context(closing(RunImages(cache, what.splits, data_dir=data_dir)))
            cache, what = images.cache, replace(what, layers=images.columns[0].layers)
        else:
            cache = cache if isinstance(cache, FeatureCache) else opened.enter_context(FeatureCache.open(cache))
            answers, run = None, None
        rows = CacheRows.of(cache, what.splits, what.layers)
        if rows.views > 1 and format not in FORMATS_WITH_VIEWS:
            reporter.warn(
                f"{rows.views - 1} augmented views of each train image are left out: {format} has one row per image; "
                f"{', '.join(FORMATS_WITH_VIEWS)} contain them"
            )
        advance = partial(reporter.advance, "exporting")
        made = None
        try:
            if format == "atlas":
                images = images or CachedImages([CacheLayers(cache=cache, layers=rows.layers)], rows.splits)
                images.targets = tuple(cache.targets)
                made = write_atlas(
                    images,
                    path,
                    reporter.advance,
                    method=what.map,
                    answers=answers,
                    pictures=what.images,
                    data_dir=data_dir,
                )
            elif format == "projector":
                write_projector(rows, path, advance, images=what.images, data_dir=data_dir)
            else:
                _WRITERS[format](rows, path, advance)
        except OSError as error:
            raise unwritable(path, error) from error
        return ExportedCache(
            path=path,
            format=format,
            cache=cache.name,
            rows=rows.counts,
            feature_dim={layer: rows.dim(layer) for layer in rows.layers},
            views=rows.views if format in FORMATS_WITH_VIEWS else 1,
            nbytes=bytes_of(path),
            run=run,
            map=made,
        )


def _require_fitting(format: str, what: CacheExportOptions, cache: object) -> None:
    """Raise UnknownName or InvalidOption for an unknown format, or options that belong to another one."""
    if format not in CACHE_FORMATS:
        raise UnknownName("format of a cache", format, CACHE_FORMATS)
    if what.images and format not in POINT_FORMATS:
        raise InvalidOption(f"--images belongs to {' and '.join(POINT_FORMATS)}, and the format is {format}")
    if what.map is not None and format != "atlas":
        raise InvalidOption(f"--map belongs to atlas, and the format is {format}")
    if isinstance(cache, Run) and format != "atlas":
        raise InvalidOption(f"expected a cache for the format {format}, got a run", hint="only atlas takes a run")
    if isinstance(cache, Run) and what.layers:
        raise InvalidOption("--layer belongs to a cache: a run has the layers that its head reads", hint="leave it out")


def _answers_of(run: Run, head: Callable[..., Any] | None) -> Answers:
    """A run's predictions as columns: the class and its probability, the classes, or the numbers."""
    target = run.target

    def columns(outputs: NDArray[np.float32]) -> Mapping[str, Sequence[Any]]:
        if target.kind == "numbers":
            numbers = zip(target.names, outputs.T.astype(np.float64), strict=True)
            return {f"prediction.{name}": values.tolist() for name, values in numbers}
        if target.kind == "lists":
            some = [labels_of(target, row, thresholds_of(run)) for row in outputs]
            return {"prediction": [SEPARATOR.join(guess.label for guess in labels) for labels in some]}
        best = outputs.argmax(axis=1)
        return {"prediction": [target.names[number] for number in best], "probability": outputs.max(axis=1).tolist()}

    return Answers(outputs=head_outputs(run, head=head), columns=columns)
