"""Heads by name: what `linear`, `mlp:128,64`, `logreg` or `knn` mean, and how they are built.

A head is written as a kind, and after a colon what that kind takes. Each kind stands once in `HEAD_KINDS`, so
a new one is one entry. Parsing needs no torch; building imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.errors import InvalidOption, UnknownName

if TYPE_CHECKING:
    from torch import nn

# The name on the command line, and torch.nn's class for it.
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
    """A parsed head: its kind, and the sizes of its hidden layers."""

    kind: str
    hidden: tuple[int, ...] = ()

    @property
    def solved(self) -> bool:
        """Whether it is solved at once, and not trained by steps."""
        return HEAD_KINDS[self.kind].solved

    def __str__(self) -> str:
        return self.kind + (":" + ",".join(map(str, self.hidden)) if self.hidden else "")


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """All that building needs: `in_features` and `classes` come from the cache, the rest was asked for.

    `rows`, `stored`: how many train rows a head that holds them has, and their dtype.
    """

    in_features: int
    classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    rows: int = 0
    stored: str = "float32"


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """One kind of head: how it is written and how it is built.

    `sized`: hidden sizes stand after its colon.
    `solved`: it is solved at once (heads/solvers.py), so nothing that belongs to steps applies to it.
    """

    name: str
    usage: str
    build: Callable[[HeadShape], nn.Module]
    sized: bool = False
    solved: bool = False


def parse_head(text: str) -> Architecture:
    """Read `linear` or `mlp:128,64`.

    Raises UnknownName (offering the nearest) or InvalidOption.
    """
    name, _, rest = text.partition(":")
    kind = HEAD_KINDS.get(name)
    if kind is None:
        raise UnknownName("head", name, HEAD_KINDS)
    if rest and not kind.sized:
        raise InvalidOption(f"the head {name} takes no sizes, got {rest!r}", hint=f"{name}, or mlp:128,64")
    return Architecture(kind=name, hidden=_hidden_sizes(rest) if kind.sized else ())


def check_activation(name: str) -> None:
    """Raise UnknownName unless `name` is one of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UnknownName("activation", name, ACTIVATIONS)


def head_names() -> tuple[str, ...]:
    """How each kind of head is written, as an example."""
    return tuple(kind.usage for kind in HEAD_KINDS.values())


def build_head(architecture: Architecture, shape: HeadShape) -> nn.Module:
    """A head with float32 weights from torch's global generator: (N, in_features) -> logits (N, classes)."""
    return HEAD_KINDS[architecture.kind].build(shape)


def without_norms(head: nn.Module) -> nn.Module:
    """The same function in eval mode, its batch norms folded into the linear layers before them, which have no bias."""
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = ""
    for name, layer in head.named_children():
        linear = layers.get(before)
        if isinstance(layer, nn.BatchNorm1d) and isinstance(linear, nn.Linear):
            layers[before] = _normed(linear, layer)
        else:
            layers[name], before = layer, name
    return nn.Sequential(layers).train(head.training)


def _normed(linear: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    # norm(Wx) = gain (Wx - mean) / deviation + shift, in float64 until it is rounded once.
    import torch
    from torch import nn

    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("expected a batch norm with running statistics")
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    # Without initial weights, which would be drawn from the caller's random state.
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    with torch.no_grad():
        folded.weight = nn.Parameter((linear.weight.double() * gain[:, None]).float())
        folded.bias = nn.Parameter((norm.bias.double() - norm.running_mean.double() * gain).float())
    return folded


def _hidden_sizes(rest: str) -> tuple[int, ...]:
    sizes = tuple(_hidden_size(size, rest) for size in rest.split(","))
    if not 1 <= len(sizes) <= 32:
        raise InvalidOption(f"expected 1 to 32 hidden layers, got {len(sizes)}", hint="for example mlp:128,64")
    return sizes


def _hidden_size(text: str, rest: str) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdecimal() and 1 <= int(digits[:9]) <= WIDEST_LAYER and len(digits) < 9:
        return int(digits)
    raise InvalidOption(
        f"expected hidden sizes from 1 to {WIDEST_LAYER:,} separated by commas, got {rest!r}",
        hint="for example mlp:128,64",
    )


def _build_perceptron(shape: HeadShape) -> nn.Module:
    # Named layers, so that the tensors of a saved head read as what they are.
    from collections import OrderedDict

    from torch import nn

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = shape.in_features
    for number, size in enumerate(shape.hidden, start=1):
        # A norm has a shift of its own, and takes any other off again.
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
    from featcache.heads.neighbours import Neighbours

    return Neighbours(shape)


HEAD_KINDS: Mapping[str, HeadKind] = {
    kind.name: kind
    for kind in (
        HeadKind(name="linear", usage="linear", build=_build_perceptron),
        HeadKind(name="mlp", usage="mlp:128,64", build=_build_perceptron, sized=True),
        HeadKind(name="logreg", usage="logreg", build=_build_perceptron, solved=True),
        HeadKind(name="ridge", usage="ridge", build=_build_perceptron, solved=True),
        HeadKind(name="centroid", usage="centroid", build=_build_perceptron, solved=True),
        HeadKind(name="knn", usage="knn", build=_build_neighbours, solved=True),
    )
}
