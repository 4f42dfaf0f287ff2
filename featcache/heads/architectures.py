"""Heads by name: what `linear` and `mlp:128,64` mean, and how they are built.

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

    def __str__(self) -> str:
        return self.kind + (":" + ",".join(map(str, self.hidden)) if self.hidden else "")


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """All that building needs: `in_features` and `classes` come from the cache, the rest was asked for."""

    in_features: int
    classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """One kind of head: how it is written, how the text after the colon is read, how it is built."""

    name: str
    usage: str
    parse: Callable[[str], tuple[int, ...]]
    build: Callable[[HeadShape], nn.Module]


def parse_head(text: str) -> Architecture:
    """Read `linear` or `mlp:128,64`.

    Raises UnknownName (offering the nearest) or InvalidOption.
    """
    name, _, rest = text.partition(":")
    kind = HEAD_KINDS.get(name)
    if kind is None:
        raise UnknownName("head", name, HEAD_KINDS)
    return Architecture(kind=name, hidden=kind.parse(rest))


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


def _no_sizes(rest: str) -> tuple[int, ...]:
    if rest:
        raise InvalidOption(f"the head linear takes no sizes, got {rest!r}", hint="linear, or mlp:128,64")
    return ()


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
        layers[f"hidden{number}"] = nn.Linear(width, size)
        layers[f"activation{number}"] = getattr(nn, ACTIVATIONS[shape.activation])()
        if shape.dropout > 0:
            layers[f"dropout{number}"] = nn.Dropout(shape.dropout)
        width = size
    layers["output"] = nn.Linear(width, shape.classes)
    return nn.Sequential(layers)


HEAD_KINDS: Mapping[str, HeadKind] = {
    kind.name: kind
    for kind in (
        HeadKind(name="linear", usage="linear", parse=_no_sizes, build=_build_perceptron),
        HeadKind(name="mlp", usage="mlp:128,64", parse=_hidden_sizes, build=_build_perceptron),
    )
}
