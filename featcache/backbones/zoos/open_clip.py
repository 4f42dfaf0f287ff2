"""The zoo of open_clip: networks with an encoder of images and one of texts. Needs the extra `clip`.

    open_clip:ViT-B-32 --weights laion2b_s34b_b79k    a tag of the library's, downloaded once
    open_clip:ViT-B-32 --weights clip.safetensors     a checkpoint of both encoders

`pre_logits` is `encode_image(images)`, not normalised: the image's embedding in the space of the texts. Models whose
text encoder is one of transformers are not here, because they cannot be built without a download.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import (
    OFFLINE_HINT,
    PRE_LOGITS,
    TEXT_PREFIX,
    TOKENS,
    Architecture,
    Tap,
    TokenLayout,
    standard_root,
)
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.weights import Weights

_TOKENIZER_CONFIG = "tokenizer_config.json"
# The most texts that are encoded together.
_BATCH = 64


class OpenClipZoo:
    """See `zoos.Zoo`."""

    prefix = TEXT_PREFIX

    def names(self) -> Sequence[str]:
        """The models whose encoders are both built by open_clip or timm."""
        return tuple(f"{TEXT_PREFIX}{name}" for name in _open_clip().list_models() if _is_supported(name))

    def check(self, name: str) -> None:
        """Raises UnknownName with similar names, or MissingExtra."""
        if name not in self.names():
            raise UnknownName("backbone", name, self.names(), listed_by=f"featcache backbones {TEXT_PREFIX}")

    def transform(self, name: str) -> Transform:
        """The preprocessing of the model's weights, or open_clip's default where they differ."""
        known = [_open_clip().get_pretrained_cfg(_model(name), tag) for tag in _tags(name)]
        alike = all(_preprocessing(one) == _preprocessing(known[0]) for one in known)
        return _transform(name, known[0] if known and alike else {})

    def build(self, name: str, image_size: int) -> Architecture:
        """See `zoos.Zoo`."""
        self.check(name)
        import torch

        try:
            with _quiet():
                network: nn.Module = _open_clip().create_model(
                    _model(name), force_image_size=image_size, device=torch.get_default_device()
                )
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise InvalidOption(f"{name} cannot be built for {image_size} pixels: {one_line(error)}") from error
        taps, layout = _tokens(network)
        root = standard_root(network, _standard)
        return Architecture(
            root=root, inside="network.", standard={PRE_LOGITS: Tap(module=PRE_LOGITS), **taps}, tokens=layout
        )

    def source_of(self, name: str, weights: str) -> str:
        """`open_clip:ViT-B-32/laion2b_s34b_b79k`. Raises UnknownName, also for "default" if there are several."""
        return f"{name}/{_tag(name, weights)}"

    def weights(self, name: str, weights: str) -> Weights:
        """The weights of a tag, from the hub or from its local cache. Raises DownloadError, InvalidOption."""
        from featcache.backbones.checkpoints import read_checkpoint
        from featcache.backbones.weights import Weights

        tag = _tag(name, weights)
        config = _open_clip().get_pretrained_cfg(_model(name), tag)
        _require_activation(name, tag, config)
        path = _download(f"{name}/{tag}", config)
        checkpoint = read_checkpoint(path)
        return Weights(
            source=f"{name}/{tag}",
            tensors=checkpoint.tensors,
            transform=_transform(name, config),
            own_normalization=True,
            files=(path,),
            notes=checkpoint.notes,
        )

    def convert(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        """A checkpoint's tensors as `open_clip.load_checkpoint` converts them; position embeddings are interpolated."""
        from open_clip import convert, factory

        network = architecture.root.network
        plain = {key.removeprefix("module."): value for key, value in tensors.items()}
        found: dict[str, Tensor] = convert.convert_state_dict(network, plain)
        if "positional_embedding" in found and not hasattr(network, "positional_embedding"):
            found = factory.convert_to_custom_text_state_dict(found)
        for name in ("logit_scale", "logit_bias"):
            value = getattr(network, name, None)
            if name in found and value is not None:
                found[name] = found[name].reshape(value.shape)
        factory.resize_pos_embed(found, network)
        factory.resize_text_pos_embed(found, network)
        return _resize_in_timm(found, network)


def _resize_in_timm(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Interpolate the position embeddings of an image encoder of timm's, as its `set_input_size` does."""
    trunk: Any = getattr(network.visual, "trunk", None)
    name = "visual.trunk.pos_embed"
    if name not in tensors or tensors[name].shape == trunk.pos_embed.shape:
        return tensors
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    resized = resample_abs_pos_embed(
        tensors[name], new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix
    )
    return {**tensors, name: resized}


def _standard(network: Any, images: Tensor) -> Iterator[tuple[str, Any]]:
    yield PRE_LOGITS, network.encode_image(images)


def _tokens(network: Any) -> tuple[dict[str, Tap], TokenLayout | None]:
    """Where the tokens are read, and their layout; no tap if the last norm follows the pooling, or is timm's."""
    visual = network.visual
    if hasattr(visual, "class_embedding"):
        own = {"tok": "cls", "avg": "avg"}.get(visual.pool_type)
        normed = own is not None and not visual.final_ln_after_pool
        layout = TokenLayout(prefix=1, class_token=True, own_pool=own)  # type: ignore[arg-type]  # of these two
        return ({TOKENS: Tap(module="network.visual.ln_post")} if normed else {}), layout
    prefix = int(getattr(getattr(visual, "trunk", None), "num_prefix_tokens", 0))
    return {}, TokenLayout(prefix=prefix, class_token=True, own_pool=None) if prefix else None


# --- texts ---------------------------------------------------------------------------------------------------


def tokenize(name: str, texts: Sequence[str], file: Path | None) -> tuple[Tensor, tuple[str, ...], str]:
    """Convert texts to tokens.

    Args:
        name: The backbone's name.
        texts: The texts.
        file: The tokenizer.json of a network whose tokenizer is not part of open_clip, in a folder with its
            tokenizer_config.json; None: it is downloaded.

    Returns:
        int64 (N, T); the texts that are longer than T; and the tokenizer's name, "" for that of open_clip.

    Raises:
        InvalidOption: The file is not needed, or no tokenizer.
        DownloadError: The tokenizer cannot be downloaded.
        MissingExtra: transformers is not installed.
    """
    tokenizer, named = _tokenizer(name, file)
    length = tokenizer.context_length
    tokens: Tensor = tokenizer(list(texts), context_length=length)
    # With a larger limit the end of a short text is followed by padding alone.
    longer = tokenizer(list(texts), context_length=4 * length)
    cut_off = (longer[:, length:] != longer[:, -1:]).any(dim=1) | (longer[:, length - 1] != tokens[:, -1])
    return tokens, tuple(text for text, cut in zip(texts, cut_off.tolist(), strict=True) if cut), named


def encode(network: Any, tokens: Tensor) -> NDArray[np.float32]:
    """The embeddings of texts by a network with all its weights: tokens int64 (N, T) -> float32 (N, D)."""
    import torch

    with torch.inference_mode():
        parts = (network.encode_text(tokens[start : start + _BATCH]) for start in range(0, len(tokens), _BATCH))
        return np.concatenate([part.numpy() for part in parts])


def _tokenizer(name: str, file: Path | None) -> tuple[Any, str]:
    text = _config(name)["text_cfg"]
    hub = text.get("hf_tokenizer_name")
    if hub is None:
        if file is not None:
            raise InvalidOption(f"{name} has a tokenizer of open_clip's own, got {file}", hint="leave it out")
        with _quiet():
            return _open_clip().get_tokenizer(_model(name)), ""
    if file is None:
        where: str | Path = hub
    elif (file.parent / _TOKENIZER_CONFIG).is_file() and file.is_file():
        where = file.parent
    else:
        raise InvalidOption(
            f"expected a tokenizer file with a {_TOKENIZER_CONFIG} beside it, as in the repository {hub}, got {file}"
        )
    return _of_transformers(name, str(where), file, text), f"tokenizer {file or hub}"


def _of_transformers(name: str, where: str, file: Path | None, text: Mapping[str, Any]) -> Any:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise MissingExtra(f"the tokenizer of {name}", package="transformers", extra="transformers")
    from open_clip.tokenizer import HFTokenizer

    try:
        return HFTokenizer(
            where,
            context_length=text["context_length"],
            tokenizer_mode=text.get("tokenizer_mode"),
            **text.get("tokenizer_kwargs", {}),
        )
    except Exception as error:
        # transformers and the hub's client may raise any exception.
        if file is not None:
            raise InvalidOption(f"{file} is no tokenizer that transformers can read: {one_line(error)}") from error
        raise DownloadError(
            f"the tokenizer {where} of {name} could not be downloaded: {one_line(error)}",
            hint='without a network, name its file: --head "text:a photo of a {}|FOLDER/tokenizer.json"',
        ) from error


# --- models and weights --------------------------------------------------------------------------------------


def _model(name: str) -> str:
    return name.removeprefix(TEXT_PREFIX)


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = _open_clip().get_model_config(_model(name))
    return config


def _is_supported(model: str) -> bool:
    """Whether a model is built without files of the hub, and has one encoder each of images and texts."""
    config = _open_clip().get_model_config(model)
    return "hf_model_name" not in config["text_cfg"] and "multimodal_cfg" not in config


def _tags(name: str) -> list[str]:
    found: list[str] = _open_clip().list_pretrained_tags_by_model(_model(name))
    return found


def _tag(name: str, weights: str) -> str:
    ZOO.check(name)
    tags = _tags(name)
    if weights == "default" and len(tags) == 1:
        return tags[0]
    if weights not in tags:
        error = UnknownName(f"weights for {name}", weights, tags)
        error.hint = f"expected --weights {', '.join(tags)}{', ' if tags else ''}a file, or random"
        raise error
    return weights


def _require_activation(name: str, tag: str, config: Mapping[str, Any]) -> None:
    """Raise InvalidOption if weights were trained with another activation: the features would be wrong, silently."""
    trained, built = (bool(one.get("quick_gelu", False)) for one in (config, _config(name)))
    if trained != built:
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        raise InvalidOption(
            f"the weights {tag} were trained {'with' if trained else 'without'} QuickGELU, and {name} is built "
            f"{'with' if built else 'without'} it",
            hint=f"--backbone {other}",
        )


def _download(source: str, config: Mapping[str, Any]) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(config))
    except Exception as error:
        # The hub's client may raise any exception: about networks, proxies, tokens or disks.
        raise DownloadError(
            f"the weights {source} could not be downloaded: {one_line(error)}",
            hint=OFFLINE_HINT,
        ) from error


def _preprocessing(config: Mapping[str, Any]) -> list[Any]:
    return [config.get(key) for key in ("mean", "std", "interpolation", "resize_mode")]


def _transform(name: str, config: Mapping[str, Any]) -> Transform:
    """The preprocessing of weights; what they do not define is open_clip's default."""
    from open_clip.transform import PreprocessCfg

    ZOO.check(name)
    size = _config(name)["vision_cfg"].get("image_size", 224)
    default = PreprocessCfg()
    mean, std, interpolation, mode = (
        value or getattr(default, key)
        for key, value in zip(("mean", "std", "interpolation", "resize_mode"), _preprocessing(config), strict=True)
    )
    if not isinstance(size, int) or interpolation not in ("bilinear", "bicubic") or mode not in ("shortest", "squash"):
        raise InvalidOption(f"{name} needs images of {size} pixels, {mode}, {interpolation}: expected a square")
    cropped = mode == "shortest"
    return Transform(
        image_size=size,
        resize="crop" if cropped else "squash",
        resize_size=size if cropped else None,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's log, as of weights that are loaded later, and its configuration of the root logger."""
    disabled, handler = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.removeHandler(handler)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("a backbone of open_clip's", package="open_clip_torch", extra="clip") from error
    return open_clip


ZOO = OpenClipZoo()
