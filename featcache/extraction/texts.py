"""Embeds texts about classes with the text encoder of the network that computed a cache's features.

Image and text features of CLIP and SigLIP have one space: the more alike an image and a text are, the larger the cosine
of their embeddings. The text encoder is used only with weights of the cache's own network, compared by digest.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.options import BackboneOptions
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos import PRE_LOGITS, TEXT_PREFIX
from featcache.cache.spec import Spec
from featcache.errors import InvalidOption, WeightsError
from featcache.extraction.rebuild import weights_option


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassEmbeddings:
    """The embeddings of classes, and the network's own numbers that turn cosines into logits.

    logit = scale * cosine + bias

    Attributes:
        vectors: float32 (C, D), one row of length 1 for each class.
        scale: The factor (an inverse temperature).
        bias: The addend; None for a network without one: only the differences of its logits have a meaning.
        source: The backbone with the source of its weights, and of its tokenizer if it is not open_clip's own.
        shortened: The texts that are longer than the encoder reads, of which it read the beginning.
    """

    vectors: NDArray[np.float32]
    scale: float
    bias: float | None
    source: str
    shortened: tuple[str, ...]


def has_text_encoder(spec: Spec) -> bool:
    """Whether the backbone of a cache has a text encoder."""
    return spec.backbone.startswith(TEXT_PREFIX)


def require_text_encoder(spec: Spec, layers: Sequence[str], weights: str | None, *, head: str, images: str) -> None:
    """Raise InvalidOption unless features are image embeddings in one space with texts.

    Args:
        spec: The spec of the cache.
        layers: The layers that the head reads, of all caches.
        weights: The recorded source of the weights.
        head: The name of the head, for the message.
        images: The data set, for the message.
    """
    named = has_text_encoder(spec)
    if named and tuple(layers) == (PRE_LOGITS,):
        return
    backbone, source = (spec.backbone, weights_option(spec, weights, spec.backbone)) if named else _EXAMPLE
    again = ["featcache", "extract", "--backbone", backbone, "--weights", source, "--dataset", images]
    raise InvalidOption(
        f"the head {head} compares images with texts: expected the layer {PRE_LOGITS} of a backbone "
        f"{TEXT_PREFIX}NAME, got {', '.join(layers)} of {spec.backbone}",
        hint=f"--layer {PRE_LOGITS}" if named and PRE_LOGITS in spec.layer_names else shlex.join(again),
    )


_EXAMPLE = (f"{TEXT_PREFIX}ViT-B-32", "laion2b_s34b_b79k")


@lru_cache(maxsize=8)
def embed_classes(
    spec: Spec, weights: str | None, texts: tuple[tuple[str, ...], ...], tokenizer: Path | None
) -> ClassEmbeddings:
    """Embed classes, each as the mean of the embeddings of its texts. Results are kept: loading takes seconds.

    Args:
        spec: The spec of the cache.
        weights: The recorded source of the weights.
        texts: The texts of each class, of all classes equally many.
        tokenizer: A tokenizer file; None for the one of the network.

    Raises:
        WeightsError: The weights are missing, or are not those that computed the features.
        MissingExtra, DownloadError, InvalidOption: What the zoo raises.
    """
    from featcache.backbones.loading import load_all
    from featcache.backbones.zoos import open_clip

    options = BackboneOptions(
        backbone=spec.backbone,
        layers=spec.layer_names,
        image_size=Transform.from_json(spec.without_views().transform).image_size,
        weights=weights_option(spec, weights, spec.backbone),
    )
    loaded, layers = load_all(options, weights_dir=Path())
    network: Any = loaded
    for layer in layers:
        if layer.weights != spec.layer(layer.name).weights:
            raise WeightsError(
                f"the weights at {weights} are not those that the features of {spec.backbone} were computed with",
                hint="put the old weights back, or extract again",
            )
    tokens, shortened, named = open_clip.tokenize(spec.backbone, [one for each in texts for one in each], tokenizer)
    encoded = open_clip.encode(network, tokens).reshape(len(texts), len(texts[0]), -1)
    bias = getattr(network, "logit_bias", None)
    return ClassEmbeddings(
        vectors=_unit_length(_unit_length(encoded).mean(axis=1)),
        scale=float(network.logit_scale.exp()),
        bias=None if bias is None else float(bias),
        source=f"{spec.backbone} ({', '.join(filter(None, (weights, named)))})",
        shortened=shortened,
    )


def _unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled
