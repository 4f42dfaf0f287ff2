"""The real images that an exported file is checked on: by default those that the run's cache was extracted from."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.cache.reader import FeatureCache
from featcache.errors import CacheError, ExportError, FeatcacheError
from featcache.images import ImageSource, decode, open_images, select
from featcache.rows.origins import FeatureOrigin
from featcache.runs.run import Run

_HINT = "name images: --verify-images, a folder, an archive or a file"


def images_of_cache(run: Run, limit: int, data_dir: Path) -> list[NDArray[np.uint8]]:
    """At most `limit` images of the run's set, decoded: uint8 (H, W, 3).

    They are test images where there are some, balanced over the classes.

    Raises ExportError where they cannot be read without a download.
    """
    name = _name(run.features)
    if name is None:
        raise ExportError(f"{run.folder.name} has no record of the images it was trained on", hint=_HINT)
    try:
        with closing(source_of(name, data_dir)) as source:
            split = next(split for split in ("test", "val", "train") if split in source.splits())
            samples = select(source.samples(split), limit)
            return [decode(source.read(sample), sample.id) for sample in samples]
    except FeatcacheError as error:
        raise ExportError(f"the images to check the file on cannot be read: {error.message}", hint=_HINT) from error


def source_of(name: str, data_dir: Path) -> ImageSource:
    """Open the images that a cache was extracted from, by the name or the path of their set; nothing is downloaded.

    Raises DownloadError or SourceError where they do not exist.
    """
    # A check on some images does not justify the download of a data set.
    return open_images(name, datasets_dir=data_dir / "datasets", download=False)


def _name(origin: FeatureOrigin) -> str | None:
    if origin.images is not None:
        return origin.images
    try:
        with FeatureCache.open(origin.cache) as cache:
            return cache.selection.source
    except CacheError:
        return None
