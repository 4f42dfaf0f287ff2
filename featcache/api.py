"""`featcache.extract`: the command's options as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from featcache.backbones.network import Network
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divided
from featcache.errors import InvalidOption
from featcache.extraction.execution import Execution
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import extract_each
from featcache.images.location import locate

Several = list[str] | list[Network] | list[str | Network] | tuple[str | Network, ...]
Progress = Callable[[str, int, int], None]
# The first two are arguments of their own; a shard leaves no cache to open.
_NOT_OPTIONS = ("dataset", "backbone", "shard")
_OF_EACH = ("layers", "weights")


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
            (N, H, W) or (N, H, W, C) uint8; a torch dataset; an ImageSource, which stays open; or a mapping of train,
            val and test to any of these, or to pairs (images, labels).
        labels: Of an array or a list of paths: N class names or numbers, None or -1 where there is none; N floats
            that are not all whole, to be predicted; (N, C) 0 and 1 for several classes; a mapping of column names
            to N values.
        classes: The names of labels that are numbers.
        backbone: The name of a network, "pixels", or a Network (`load_backbone`, `from_module`), of which nothing is
            left to choose. A list of them reads and decodes every image once for all, and gives a list of caches;
            `layers` and `weights` then map the names of backbones to theirs.
        data_dir: The folder of data sets, weights and caches.
        progress: Called with (stage, images done, images in all).
        {options}

    Returns:
        The cache: `cache["train"].features` has shape (N, D) and the stored dtype, `.labels` int64 (N,), `.ids`
        N names. For a list of backbones a list of caches.

    Raises:
        InvalidOption: An option that there is not, or a value that cannot be used.
        UnknownName: A backbone, layer, set or split that there is not.
        SourceError: An image that cannot be used, with on_error="fail".
        WeightsError, DownloadError, ExtractionError, CacheError: Features cannot be computed or stored.
    """
    own = ("images", "backbone", "labels", "classes")
    said, how = divided(options, "extract", Request, Execution, without=_NOT_OPTIONS, also=own)
    several = isinstance(backbone, list | tuple)
    backbones: Sequence[str | Network] = backbone if isinstance(backbone, list | tuple) else [backbone]
    names = [one if isinstance(one, str) else one.name for one in backbones]
    theirs = {option: _by_backbone(option, said.pop(option), names) for option in _OF_EACH if option in said}
    is_text = isinstance(images, str | Path) and labels is None and classes is None
    where = images if is_text else locate(images, labels=labels, classes=classes)
    requests = [
        Request(
            dataset=where,
            backbone=one,
            data_dir=Path(data_dir),
            **said,
            **{option: found[name] for option, found in theirs.items() if name in found},
        )
        for name, one in zip(names, backbones, strict=True)
    ]
    done = extract_each(requests, Execution(**how), reporter=_Reporter(progress))
    caches = [FeatureCache.open(one.cache) for one in done]
    return caches if several else caches[0]


def _by_backbone(option: str, value: object, names: Sequence[str]) -> dict[str, Any]:
    """The values of the backbones that have one; raises InvalidOption where it could be of several, or of none."""
    if isinstance(value, Mapping):
        if strangers := sorted(set(value) - set(names)):
            raise InvalidOption(f"{option}: expected names among {', '.join(names)}, got {', '.join(strangers)}")
        return dict(value)
    if len(names) > 1:
        raise InvalidOption(
            f"{option} of several backbones: expected a mapping, got {value!r}", hint=f"{option}={{{names[0]!r}: ...}}"
        )
    return dict.fromkeys(names, value)


class _Reporter(LogReporter):
    """Sentences to the logger, progress to the caller's function."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)
