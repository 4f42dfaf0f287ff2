"""`featcache.extract`: the command's options as keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from featcache.backbones.network import Network
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.errors import InvalidOption
from featcache.extraction.execution import Execution
from featcache.extraction.reporting import ProgressReporter
from featcache.extraction.request import Request
from featcache.extraction.run import extract_each
from featcache.images.location import locate
from featcache.progress import StageProgress

Several = list[str] | list[Network] | list[str | Network] | tuple[str | Network, ...]
Progress = StageProgress | bool
# The first two are arguments of their own; a shard does not give a cache that could be opened.
_NOT_OPTIONS = ("dataset", "backbone", "shard")
_PER_BACKBONE = ("layers", "weights")


@overload
def extract(
    images: Any = ...,
    backbone: str | Network = ...,
    *,
    data_dir: str | Path = ...,
    labels: Any = ...,
    classes: Sequence[str] | None = ...,
    progress: Progress | None = ...,
    **options: Any,
) -> FeatureCache: ...


@overload
def extract(
    images: Any,
    backbone: Several,
    *,
    data_dir: str | Path = ...,
    labels: Any = ...,
    classes: Sequence[str] | None = ...,
    progress: Progress | None = ...,
    **options: Any,
) -> list[FeatureCache]: ...


@overload
def extract(
    images: Any = ...,
    *,
    backbone: Several,
    data_dir: str | Path = ...,
    labels: Any = ...,
    classes: Sequence[str] | None = ...,
    progress: Progress | None = ...,
    **options: Any,
) -> list[FeatureCache]: ...


@accepts(Request, Execution, without=_NOT_OPTIONS)
def extract(
    images: Any = "cifar10",
    backbone: str | Network | Several = "vgg16",
    *,
    data_dir: str | Path = "data",
    labels: Any = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> FeatureCache | list[FeatureCache]:
    """Run a frozen backbone over images, once, and open the cache of its features.

    Rows that a cache or an unfinished extraction in `data_dir` already holds are not computed again.

    Args:
        images: The name of a data set; the path of a folder, zip or tar of `class/image` or `split/class/image`, of a
            table, of Parquet files or WebDataset tars; `hf:` and `torchvision:` names; a list of paths; an array
            (N, H, W) or (N, H, W, C) uint8; a torch dataset; an ImageSource, which is not closed; or a mapping of
            train, val and test to any of these, or to pairs (images, labels).
        backbone: The name of a network, "pixels", or a Network (`load_backbone`, `from_module`), which already has its
            layers, weights and transform. With a list of backbones every image is read and decoded once for all of
            them, and the result is a list of caches; `layers` and `weights` are then mappings by backbone name.
        data_dir: The folder of data sets, weights and caches.
        labels: For an array or a list of paths: N class names or numbers, None or -1 for an unlabelled image; N floats,
            not all whole numbers, for regression; (N, C) of 0 and 1 for several classes; or a mapping of column names
            to N values.
        classes: The class names of labels that are numbers.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, images done, images in all).
        {options}

    Returns:
        The cache: `cache["train"].features` has shape (N, D) and the stored dtype, `.labels` is int64 (N,), `.ids` has
        N names. For a list of backbones, a list of caches.

    Raises:
        InvalidOption: An unknown option, or a value that cannot be used.
        UnknownName: An unknown backbone, layer, data set or split.
        SourceError: An image cannot be used, with on_error="fail".
        WeightsError, DownloadError, ExtractionError, CacheError: Features cannot be computed or stored.
    """
    own = ("images", "backbone", "labels", "classes")
    given, how = divide_options(options, "extract", Request, Execution, without=_NOT_OPTIONS, also=own)
    several = isinstance(backbone, list | tuple)
    backbones: Sequence[str | Network] = backbone if isinstance(backbone, list | tuple) else [backbone]
    names = [one if isinstance(one, str) else one.name for one in backbones]
    per_backbone = {
        option: _by_backbone(option, given.pop(option), names) for option in _PER_BACKBONE if option in given
    }
    is_text = isinstance(images, str | Path) and labels is None and classes is None
    location = images if is_text else locate(images, labels=labels, classes=classes)
    requests = [
        Request(
            dataset=location,
            backbone=one,
            data_dir=Path(data_dir),
            **given,
            **{option: values[name] for option, values in per_backbone.items() if name in values},
        )
        for name, one in zip(names, backbones, strict=True)
    ]
    with ProgressReporter(progress) as reporter:
        done = extract_each(requests, Execution(**how), reporter=reporter)
    caches = [FeatureCache.open(extraction.cache) for extraction in done]
    return caches if several else caches[0]


def _by_backbone(option: str, value: object, names: Sequence[str]) -> dict[str, Any]:
    """An option's value for each backbone that has one.

    Raises InvalidOption for an unknown backbone's name, and for one value for several backbones.
    """
    if isinstance(value, Mapping):
        if unknown := sorted(set(value) - set(names)):
            raise InvalidOption(f"{option}: expected names among {', '.join(names)}, got {', '.join(unknown)}")
        return dict(value)
    if len(names) > 1:
        raise InvalidOption(
            f"{option} of several backbones: expected a mapping, got {value!r}", hint=f"{option}={{{names[0]!r}: ...}}"
        )
    return dict.fromkeys(names, value)
