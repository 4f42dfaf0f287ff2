"""Export a cache to other formats than HDF5: rows with ids, labels, splits and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import InvalidOption, UnknownName
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.files import unwritable
from featcache.inference.array_files import write_npy, write_npz, write_safetensors
from featcache.inference.cache_rows import Advance, CacheRows
from featcache.inference.options import CacheExportOptions
from featcache.inference.projector import write_projector
from featcache.inference.table_files import write_csv, write_parquet

Write = Callable[[CacheRows, Path, Advance], None]
_PROJECTOR = "projector"
# These formats contain augmented views; the others have one row per image.
_WITH_VIEWS = ("npz", "npy", "safetensors")
_WRITERS: Mapping[str, Write] = {
    "npz": write_npz,
    "npy": write_npy,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
    "csv": write_csv,
}
CACHE_FORMATS = (*_WRITERS, _PROJECTOR)


@dataclass(frozen=True, kw_only=True)
class ExportedCache:
    """A published file or folder.

    Attributes:
        path: The file or folder.
        format: Its format.
        cache: The name of the cache.
        rows: Rows by split.
        feature_dim: D by layer.
        views: Views of each train image in it, including the plain one.
        nbytes: Its size in bytes.
    """

    path: Path
    format: str
    cache: str
    rows: Mapping[str, int]
    feature_dim: Mapping[str, int]
    views: int
    nbytes: int

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
        }


@accepts(CacheExportOptions)
def export_cache(
    cache: FeatureCache | str | Path,
    path: str | Path,
    format: str,
    *,
    data_dir: str | Path = "data",
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportedCache:
    """Write a cache's rows in another format.

    The rows of all splits follow each other; a column or array `split` names the split of each row. Memory does not
    grow with the cache, and the file or folder appears only when it is complete.

    Args:
        cache: An open cache, or its path.
        path: The file or folder to write.
        format: "npz", "npy" or "safetensors", which also contain the augmented views of train images, as separate
            arrays; or "parquet", "csv" or "projector", with one row per image.
        data_dir: The folder of downloaded data sets, for `sprite`.
        reporter: Receives progress, and a warning where augmented views are left out.
        {options}

    Returns:
        The file or folder, and what it contains.

    Raises:
        UnknownName: There is no such format, split or layer.
        InvalidOption: npy or projector would overwrite something, or `sprite` is given for another format.
        MissingExtra: A package that the format needs is not installed.
        CacheError: The cache cannot be read, or the disk cannot be written.
        ExportError: Images for the sprite are missing.
    """
    if format not in CACHE_FORMATS:
        raise UnknownName("format of a cache", format, CACHE_FORMATS)
    own = ("data_dir", "reporter")
    what = CacheExportOptions(**divide_options(options, "export_cache", CacheExportOptions, also=own)[0])
    if what.sprite and format != _PROJECTOR:
        raise InvalidOption(f"--sprite belongs to the projector, and the format is {format}")
    path, reporter = Path(path), reporter or LogReporter()
    with ExitStack() as opened:
        if not isinstance(cache, FeatureCache):
            cache = opened.enter_context(FeatureCache.open(cache))
        rows = CacheRows.of(cache, what.splits, what.layers)
        if rows.views > 1 and format not in _WITH_VIEWS:
            reporter.warn(
                f"{rows.views - 1} augmented views of each train image are left out: {format} has one row per image; "
                f"{', '.join(_WITH_VIEWS)} contain them"
            )
        write = _WRITERS.get(format) or partial(write_projector, sprite=what.sprite, data_dir=Path(data_dir))
        try:
            write(rows, path, partial(reporter.advance, "exporting"))
        except OSError as error:
            raise unwritable(path, error) from error
        return ExportedCache(
            path=path,
            format=format,
            cache=cache.name,
            rows=rows.counts,
            feature_dim={layer: rows.dim(layer) for layer in rows.layers},
            views=rows.views if format in _WITH_VIEWS else 1,
            nbytes=_bytes_of(path),
        )


def _bytes_of(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
