"""Parse the names of heads, such as `linear`, `mlp:128,64`, `logreg` or `knn`, and build them.

The name of a head is its kind, followed by a colon and the kind's argument, if it has one. A new kind is one entry in
`HEAD_KINDS`. Parsing does not need torch; building imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.own import OwnFactory, require_path
from featcache.heads.templates import absolute_files, parse_templates

if TYPE_CHECKING:
    from torch import nn

    from featcache.rows.target import TargetKind

Activation = Literal[
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh", "sigmoid"
]
# The class of each in torch.nn.
ACTIVATIONS: Mapping[str, str] = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "mish": "Mish",
    "hardswish": "Hardswish",
    "softplus": "Softplus",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}

WIDEST_LAYER = 65_536


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A parsed head name.

    Attributes:
        kind: A key of HEAD_KINDS.
        hidden: Sizes of the hidden layers.
        path: Where a custom head is defined, `module:name`.
        templates: The texts that a head is made from (heads/templates.py).
    """

    kind: str
    hidden: tuple[int, ...] = ()
    path: str = ""
    templates: tuple[str, ...] = ()

    @property
    def solved(self) -> bool:
        """Whether a solver computes the head, instead of training by gradient steps."""
        return HEAD_KINDS[self.kind].solved

    @property
    def own(self) -> bool:
        """Whether the head is a custom module."""
        return HEAD_KINDS[self.kind].own

    def __str__(self) -> str:
        what = self.path or "|".join(self.templates) or ",".join(map(str, self.hidden))
        return f"{self.kind}:{what}" if what else self.kind


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """All that is needed to build a head.

    Attributes:
        in_features: Number of features D of the cache.
        classes: Number of outputs C.
        hidden, activation, dropout, batch_norm: The hidden layers.
        rows, stored, kind: Of knn, which holds train rows: their number, their stored dtype, and their kind of target.
        own: The factory of a custom head.
    """

    in_features: int
    classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    rows: int = 0
    stored: str = "float32"
    kind: TargetKind = "classes"
    own: OwnFactory | None = None


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """One kind of head.

    Attributes:
        name: Its name before the colon.
        usage: An example of a full name.
        build: Builds the module.
        sized: Whether sizes of hidden layers follow the colon.
        solved: Whether a solver computes it (heads/solvers.py), so that options of training by steps do not apply.
        own: Whether it is a custom module (heads/own.py), whose path follows the colon.
        texts: Whether it is made from texts about the classes, whose templates follow the colon.
    """

    name: str
    usage: str
    build: Callable[[HeadShape], nn.Module]
    sized: bool = False
    solved: bool = False
    own: bool = False
    texts: bool = False


def parse_head(text: str) -> Architecture:
    """Parse the name of a head: `linear`, `mlp:128,64`, `mlp:128-64`, `text:a photo of a {}` or `own:module:Class`.

    Raises UnknownName, which suggests the most similar name, or InvalidOption.
    """
    name, _, rest = text.partition(":")
    kind = HEAD_KINDS.get(name)
    if kind is None:
        raise UnknownName("head", name, HEAD_KINDS)
    if kind.own:
        return Architecture(kind=name, path=require_path(rest))
    if kind.texts:
        return Architecture(kind=name, templates=parse_templates(name, rest))
    if rest and not kind.sized:
        raise InvalidOption(f"the head {name} takes no sizes, got {rest!r}", hint=f"{name}, or mlp:128,64")
    return Architecture(kind=name, hidden=_parse_sizes(rest) if kind.sized else ())


def head_with_absolute_files(text: str) -> str:
    """The name of the same head, with absolute paths of its files of texts. Raises what `parse_head` raises."""
    found = parse_head(text)
    return str(replace(found, templates=absolute_files(found.templates))) if found.templates else text


def head_names() -> tuple[str, ...]:
    """An example of the name of each built-in kind of head."""
    return tuple(kind.usage for kind in HEAD_KINDS.values() if not kind.own)


def build_head(architecture: Architecture, shape: HeadShape) -> nn.Module:
    """Build a head with float32 weights from torch's global generator: (N, in_features) -> outputs (N, classes)."""
    return HEAD_KINDS[architecture.kind].build(shape)


def fold_batch_norms(head: nn.Module) -> nn.Module:
    """The same function in eval mode, with each batch norm folded into the bias-free linear layer before it."""
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = ""
    for name, layer in head.named_children():
        linear = layers.get(before)
        if isinstance(layer, nn.BatchNorm1d) and isinstance(linear, nn.Linear):
            layers[before] = _fold_batch_norm(linear, layer)
        else:
            layers[name], before = layer, name
    return nn.Sequential(layers).train(head.training)


def _fold_batch_norm(linear: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    # norm(Wx) = gain (Wx - mean) / deviation + shift, computed in float64 and rounded once.
    import torch
    from torch import nn

    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a batch norm with running statistics")
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    # On the meta device, because initial weights would be drawn from the caller's random state.
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    with torch.no_grad():
        folded.weight = nn.Parameter((linear.weight.double() * gain[:, None]).float())
        folded.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * gain).float())
    return folded


def _parse_sizes(rest: str) -> tuple[int, ...]:
    sizes = tuple(_parse_size(size, rest) for size in re.split("[,-]", rest))
    if not 1 <= len(sizes) <= 32:
        raise InvalidOption(f"expected 1 to 32 hidden layers, got {len(sizes)}", hint="for example mlp:128,64")
    return sizes


def _parse_size(text: str, rest: str) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdecimal() and 1 <= int(digits[:9]) <= WIDEST_LAYER and len(digits) < 9:
        return int(digits)
    raise InvalidOption(
        f"expected hidden sizes from 1 to {WIDEST_LAYER:,} separated by commas or -, got {rest!r}",
        hint="for example mlp:128,64",
    )


def _build_perceptron(shape: HeadShape) -> nn.Module:
    # Named layers, so that the tensors of a saved head have meaningful names.
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = shape.in_features
    for number, size in enumerate(shape.hidden, start=1):
        # A batch norm subtracts the mean, and with it any bias, and has a bias itself.
        layers[f"hidden{number}"] = nn.Linear(width, size, bias=not shape.batch_norm)
        if shape.batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm1d(size)
        layers[f"activation{number}"] = getattr(nn, ACTIVATIONS[shape.activation])()
        if shape.dropout > 0:
            layers[f"dropout{number}"] = nn.Dropout(shape.dropout)
        width = size
    layers["output"] = nn.Linear(width, shape.classes)
    return nn.Sequential(layers)


def _build_neighbours(shape: HeadShape) -> nn.Module:
    from featcache.heads.neighbour_module import Neighbours

    return Neighbours(shape)


def _build_cosine(shape: HeadShape) -> nn.Module:
    from collections import OrderedDict

    from torch import nn

    from featcache.heads.unit_length import UnitLength

    output = nn.Linear(shape.in_features, shape.classes)
    return nn.Sequential(OrderedDict(unit_length=UnitLength(), output=output))


def _build_own(shape: HeadShape) -> nn.Module:
    if shape.own is None:
        raise ValueError("expected the factory of the custom head")
    return shape.own.build(shape.in_features, shape.classes)


HEAD_KINDS: Mapping[str, HeadKind] = {
    kind.name: kind
    for kind in (
        HeadKind(name="linear", usage="linear", build=_build_perceptron),
        HeadKind(name="mlp", usage="mlp:128,64", build=_build_perceptron, sized=True),
        HeadKind(name="logreg", usage="logreg", build=_build_perceptron, solved=True),
        HeadKind(name="ridge", usage="ridge", build=_build_perceptron, solved=True),
        HeadKind(name="centroid", usage="centroid", build=_build_perceptron, solved=True),
        HeadKind(name="knn", usage="knn", build=_build_neighbours, solved=True),
        HeadKind(name="text", usage="text:a photo of a {}", build=_build_cosine, solved=True, texts=True),
        HeadKind(name="text+linear", usage="text+linear:a photo of a {}", build=_build_perceptron, texts=True),
        HeadKind(name="own", usage="own:module:Class", build=_build_own, own=True),
    )
}
