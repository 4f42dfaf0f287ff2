"""The zoo of timm: networks with the names `timm:NAME` or `timm:NAME.TAG`. Needs the extra `timm`.

`pre_logits` is timm's own `forward_head(forward_features(images), pre_logits=True)`; `tokens` is the result of
`forward_features` if that is a sequence. timm's own functions convert a checkpoint's names and position embeddings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import LOGITS, OFFLINE_HINT, PRE_LOGITS, TOKENS, Architecture, Tap, TokenLayout
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.weights import Weights

PREFIX = "timm:"
_OWN_POOLS = {"token": "cls", "avg": "avg"}


class TimmZoo:
    """See `zoos.Zoo`."""

    prefix = PREFIX

    def names(self) -> Sequence[str]:
        """All networks, without the tags of their weights."""
        return _names()

    def check(self, name: str) -> None:
        """Raises UnknownName with similar names of networks or of weights' tags; MissingExtra."""
        network, _, tag = name.partition(".")
        if network not in _names():
            raise UnknownName("backbone", name, _names(), listed_by="featcache backbones timm:")
        if tag and name not in _tags(network):
            raise UnknownName("weights of timm", name, _tags(network))

    def transform(self, name: str) -> Transform:
        """timm's configuration of the weights, resolved. Raises InvalidOption if it cannot be a `Transform`."""
        return _transform(name)

    def build(self, name: str, image_size: int) -> Architecture:
        """See `zoos.Zoo`."""
        from featcache.backbones.zoos import standard_root

        network = _network(name, image_size)
        layout = _tokens(network)
        taps = {PRE_LOGITS: Tap(module=PRE_LOGITS), TOKENS: Tap(module=TOKENS), LOGITS: Tap(module=LOGITS)}
        return Architecture(root=standard_root(network, _standard), inside="network.", standard=taps, tokens=layout)

    def source_of(self, name: str, weights: str) -> str:
        """The source that a cache records for the default weights: `timm:timm/resnet18.a1_in1k`."""
        _require_default(name, weights)
        return f"{PREFIX}{_where(name)}"

    def weights(self, name: str, weights: str) -> Weights:
        """The default weights, from the hub or from its local cache. Raises DownloadError."""
        from featcache.backbones.weights import Weights

        _require_default(name, weights)
        transform = _transform(name)
        return Weights(
            source=f"{PREFIX}{_where(name)}",
            tensors=_download(name),
            transform=transform,
            own_normalization=True,
            files=tuple(filter(None, (local_file(name),))),
        )

    def convert(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        """Convert a checkpoint with the function that timm itself applies to this network's weights."""
        convert = _conversion(name, image_size)
        if convert is None:
            return tensors
        network = architecture.root.network
        takes_network = len(inspect.signature(convert).parameters) > 1
        return dict(convert(dict(tensors), network) if takes_network else convert(dict(tensors)))


def _standard(network: Any, images: Tensor) -> Iterator[tuple[str, Any]]:
    """The standard layers in the order of computation."""
    features = network.forward_features(images)
    yield TOKENS, features
    yield PRE_LOGITS, network.forward_head(features, pre_logits=True)
    yield LOGITS, network.forward_head(features)


def _network(name: str, image_size: int | None = None, **options: Any) -> nn.Module:
    """timm's network for an image size; networks without position embeddings have no `img_size` and accept any size."""
    ZOO.check(name)
    timm, base = _timm(), name.removeprefix(PREFIX)
    if image_size is None or image_size == _own_size(name):
        network: nn.Module = timm.create_model(base, **options)
        return network
    try:
        return timm.create_model(base, img_size=image_size, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    except (AssertionError, ValueError) as error:
        raise InvalidOption(f"{name} cannot be built for {image_size} pixels: {error}") from error
    return timm.create_model(base, **options)  # type: ignore[no-any-return]


def arguments(name: str, image_size: int) -> dict[str, int]:
    """The arguments with which timm builds the network for this image size."""
    import torch

    with torch.device("meta"):
        takes_size = image_size != _own_size(name) and _takes_size(name, image_size)
    return {"img_size": image_size} if takes_size else {}


def _takes_size(name: str, image_size: int) -> bool:
    try:
        _timm().create_model(name.removeprefix(PREFIX), img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return False
    return True


def _tokens(network: Any) -> TokenLayout | None:
    """The token layout that a network of timm declares; without a declaration there is no prefix."""
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    pool = getattr(network, "global_pool", None)
    plain = not _has_parameters(getattr(network, "attn_pool", None))
    own = _OWN_POOLS.get(pool) if isinstance(pool, str) and plain else None
    return TokenLayout(
        prefix=prefix,
        class_token=getattr(network, "cls_token", None) is not None,
        own_pool=own if prefix or pool else "avg",  # type: ignore[arg-type]  # of _OWN_POOLS
    )


def _has_parameters(module: Any) -> bool:
    return module is not None and any(True for _ in module.parameters())


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(PREFIX + name for name in _timm().list_models()))


@cache
def _tags(network: str) -> tuple[str, ...]:
    return tuple(PREFIX + name for name in _timm().list_pretrained(f"{network.removeprefix(PREFIX)}.*"))


def _config(name: str) -> Any:
    """timm's configuration of the weights for a name; None if timm has none."""
    return _timm().get_pretrained_cfg(name.removeprefix(PREFIX), allow_unregistered=True)


def _own_size(name: str) -> int | None:
    config = _config(name)
    return None if config is None else int(config.input_size[-1])


@cache
def _transform(name: str) -> Transform:
    from timm.data import resolve_data_config

    ZOO.check(name)
    config = _config(name)
    resolved: Mapping[str, Any] = resolve_data_config({}, pretrained_cfg=config.to_dict() if config else {})
    channels, height, width = resolved["input_size"]
    if channels != 3 or height != width:
        raise InvalidOption(
            f"{name} needs {channels} channels of {height}x{width} pixels: expected 3 of a square image"
        )
    if resolved["interpolation"] not in ("bilinear", "bicubic"):
        raise InvalidOption(f"{name} needs images resized by {resolved['interpolation']}: expected bilinear or bicubic")
    cropped = resolved["crop_mode"] == "center"
    return Transform(
        image_size=height,
        # Some weights were evaluated on whole images, squashed or with a border.
        resize="crop" if cropped else "squash",
        # timm rounds down.
        resize_size=math.floor(height / resolved["crop_pct"]) if cropped else None,
        interpolation=resolved["interpolation"],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
    )


# --- weights -------------------------------------------------------------------------------------------------


def _require_default(name: str, weights: str) -> None:
    if weights != "default":
        raise UnknownName(f"weights for {name}", weights, ["default", "random"])


def default_weights(name: str) -> str | None:
    """The source of the default weights: a repository of the hub, or a URL; None if timm has none."""
    if not (_tags(name) if "." not in name else (name,)):
        return None
    config = _config(name)
    return str(config.hf_hub_id or config.url or name)


def _where(name: str) -> str:
    source = default_weights(name)
    if source is None:
        raise DownloadError(f"timm has no weights for {name}", hint="--weights PATH, or --weights random")
    return source


def local_file(name: str) -> Path | None:
    """The file of the default weights in the local cache; None if it was not downloaded."""
    from huggingface_hub import try_to_load_from_cache

    from featcache.backbones.zoos.torchvision_facts import torch_hub_path

    config = _config(name)
    if not config.hf_hub_id:
        path = None if config.url is None else torch_hub_path(config.url.rpartition("/")[2])
        return path if path is not None and path.is_file() else None
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    here = [try_to_load_from_cache(config.hf_hub_id, file) for file in files]
    return next((Path(path) for path in here if isinstance(path, str)), None)


def _download(name: str) -> Mapping[str, Tensor]:
    where = _where(name)
    try:
        return dict(_network(name, pretrained=True).state_dict())
    except Exception as error:
        # The hub's client may raise any exception: about networks, proxies, tokens or disks.
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise DownloadError(
            f"the weights {where} could not be downloaded: {reason}",
            hint=OFFLINE_HINT,
        ) from error


def _conversion(name: str, image_size: int) -> Callable[..., Mapping[str, Tensor]] | None:
    """The function that timm applies to a checkpoint of this network before loading it; None if there is none."""
    import torch

    conversions: list[Callable[..., Mapping[str, Tensor]] | None] = []

    def note(model: nn.Module, **options: Any) -> None:
        conversions.append(options.get("filter_fn"))

    with torch.device("meta"), _loading_replaced(note):
        _network(name, image_size, pretrained=True, pretrained_cfg_overlay={"state_dict": {}})
    return conversions[0] if conversions else None


@contextmanager
def _loading_replaced(load: Callable[..., None]) -> Iterator[None]:
    """Replace timm's loading function, because timm only passes the conversion to that call."""
    from timm.models import _builder

    original = _builder.load_pretrained
    _builder.load_pretrained = load
    try:
        yield
    finally:
        _builder.load_pretrained = original


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("a backbone of timm's", package="timm", extra="timm") from error
    return timm


ZOO = TimmZoo()
