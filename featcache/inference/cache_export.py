"""A cache in another format, for those who do not read HDF5: rows with ids, labels, splits and class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption, UnknownName
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.files import unwritable
from featcache.inference.array_files import write_npy, write_npz, write_safetensors
from featcache.inference.cache_rows import Advance, CacheRows
from featcache.inference.projector import write_projector
from featcache.inference.table_files import write_csv, write_parquet

Write = Callable[[CacheRows, Path, Advance], None]
_PROJECTOR = "projector"
# They hold augmented views too; the others have a row an image.
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
    """A published file or folder: rows of each split, and D of each layer.

    `views`: how many views of each train image are in it, the plain one among them.
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


def export_cache(
    cache: FeatureCache | str | Path,
    path: str | Path,
    format: str,
    *,
    splits: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    sprite: bool = False,
    data_dir: str | Path = "data",
    reporter: Reporter | None = None,
) -> ExportedCache:
    """Write a cache's rows in another format: "npz", "npy", "safetensors", "parquet", "csv" or "projector".

    The first three also hold the augmented views of train images, as arrays of their own; the others have a row an
    image, and `reporter` is told what they leave out.

    `cache`: an open cache or the path of one; `splits`, `layers`: which, None for all. Rows of all splits follow each
    other, and `split` says which is which. `sprite`: for the projector, the images too; `data_dir` holds downloaded
    ones. Memory stays flat; what is written appears whole or not at all.

    Raises UnknownName for a format, split or layer, InvalidOption where npy or projector would overwrite something,
    MissingExtra, CacheError for a cache that cannot be read or a disk that refuses, ExportError for missing images.
    """
    if format not in CACHE_FORMATS:
        raise UnknownName("format of a cache", format, CACHE_FORMATS)
    if sprite and format != _PROJECTOR:
        raise InvalidOption(f"--sprite belongs to the projector, and the format is {format}")
    path, reporter = Path(path), reporter or LogReporter()
    with ExitStack() as opened:
        if not isinstance(cache, FeatureCache):
            cache = opened.enter_context(FeatureCache.open(cache))
        rows = CacheRows.of(cache, splits, layers)
        if rows.views > 1 and format not in _WITH_VIEWS:
            reporter.warn(
                f"{rows.views - 1} augmented views of each train image are left out: {format} has a row an image; "
                f"{', '.join(_WITH_VIEWS)} hold them"
            )
        write = _WRITERS.get(format) or partial(write_projector, sprite=sprite, data_dir=Path(data_dir))
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
