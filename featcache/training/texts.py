"""Zero-shot heads: the names of the classes become the weights of a head, by the text encoder of the backbone.

`text` is such a head, and needs no train images. `text+linear` is a linear head that begins there, instead of at
random weights, and is trained like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.cache.spec import Selection, Spec
from featcache.cache.splits import CachedSplit
from featcache.errors import InvalidOption
from featcache.heads.architectures import Architecture
from featcache.heads.candidates import Candidate
from featcache.heads.config import HeadConfig
from featcache.heads.solved import CosineHead, outcome_of
from featcache.heads.solvers import require_solvable
from featcache.heads.standardisation import Standardisation
from featcache.heads.templates import read_templates, texts_of, tokenizer_of
from featcache.rows.features import FeatureRows
from featcache.rows.target import HeadTarget


@dataclass(frozen=True, kw_only=True, eq=False)
class TextHead:
    """A head made from texts, and sentences for the user about them."""

    head: CosineHead
    notes: tuple[str, ...]


def text_head(architecture: Architecture, rows: FeatureRows, target: HeadTarget) -> TextHead:
    """Make the head of the classes' names.

    Args:
        architecture: The name of the head, with its templates.
        rows: Features that the head will read; they are not read here.
        target: The target, whose classes are named in the texts.

    Raises:
        InvalidOption: The features are no image embeddings, or the target has no classes that the network can predict.
        HeadError: Templates cannot be read, or two classes have the same texts.
        WeightsError, MissingExtra, DownloadError: The text encoder cannot be loaded.
    """
    # Imported here, because no other head needs it.
    from featcache.extraction.texts import embed_classes, require_text_encoder

    require_solvable("text", target)
    split, layers = rows.split, [column.array.name for column in rows.columns]
    if not isinstance(split, CachedSplit):
        raise InvalidOption(
            f"the head {architecture} needs the backbone that computed the features, and arrays do not name one",
            hint="featcache.train_head, on a cache",
        )
    weights = split.provenance.get("weights")
    source = weights if isinstance(weights, str) else None
    images = Selection.from_json(split.file.contents.texts["selection"]).source
    require_text_encoder(split.spec, layers, source, head=str(architecture), images=images)
    texts = texts_of(target.names, read_templates(architecture.templates))
    found = embed_classes(split.spec.with_layers(layers), source, texts, tokenizer_of(architecture.templates))
    if target.kind == "lists" and found.bias is None:
        raise InvalidOption(
            f"{split.spec.backbone} compares texts with each other, and the target {target.columns[0]} is several "
            "classes per image",
            hint="a backbone of SigLIP, which judges each text by itself; or --head linear, logreg, ridge or knn",
        )
    head = CosineHead(
        weight=found.vectors * np.float32(found.scale), bias=np.full(target.outputs, found.bias or 0.0, np.float32)
    )
    return TextHead(head=head, notes=tuple(_notes(texts, target, found.source, found.shortened)))


def has_text_encoder(spec: Spec) -> bool:
    """Whether the backbone of a cache has a text encoder."""
    from featcache.extraction import texts

    return texts.has_text_encoder(spec)


def text_notes(config: HeadConfig, rows: FeatureRows, target: HeadTarget) -> tuple[str, ...]:
    """Sentences about the texts that a head is made of; none for other heads. Raises what `text_head` raises."""
    return text_head(config.architecture, rows, target).notes if config.architecture.templates else ()


def text_candidates(text: TextHead, val: FeatureRows, target: HeadTarget) -> Iterator[Candidate]:
    """The head as the only candidate, evaluated on val."""
    yield Candidate(
        name="no training",
        of=1,
        build=lambda: text.head,
        train_loss=float("nan"),
        val=outcome_of(text.head, val, target).score(),
    )


def linear_start(
    text: TextHead, rows: FeatureRows, standard: Standardisation | None
) -> Mapping[str, NDArray[np.float32]]:
    """The tensors of a linear head that predicts the classes of a text head.

    A linear layer cannot scale each row to length 1, so all are divided by one length, the mean of the first rows. This
    changes no predicted class of a network without bias, only how sure the head is.

    Args:
        text: The head of the classes' names.
        rows: The train rows.
        standard: The standardisation of the features in training.
    """
    length = float(np.linalg.norm(next(rows.blocks()), axis=1).mean())
    weight, bias = text.head.weight.astype(np.float64) / max(length, 1e-12), text.head.bias.astype(np.float64)
    if standard is not None:
        # The opposite of Standardisation.fold: x = z * deviation + mean.
        weight, bias = weight * standard.deviation, bias + weight @ standard.mean
    return {"output.weight": weight.astype(np.float32), "output.bias": bias.astype(np.float32)}


def _notes(
    texts: tuple[tuple[str, ...], ...], target: HeadTarget, source: str, shortened: tuple[str, ...]
) -> Iterator[str]:
    spaces = "; underscores in class names became spaces" if any("_" in name for name in target.names) else ""
    each = f"{len(texts[0]):,} texts" if len(texts[0]) > 1 else "a text"
    yield f"each class is {each}, such as {texts[0][0]!r}, in the embedding of {source}{spaces}"
    if shortened:
        yield f"warning: {len(shortened):,} texts are too long, and were cut off, such as {shortened[0]!r}"
