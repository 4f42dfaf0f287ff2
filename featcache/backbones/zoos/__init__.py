"""Where networks come from. A zoo is an object; the prefix of a backbone's name chooses it.

    vgg16                     torchvision
    timm:vit_small_patch14_dinov2
    hf:facebook/dinov2-small  transformers
    pixels                    no network: the resized images themselves

A zoo builds a network and says what its parts mean; it computes nothing, and what a
layer is, `probing` decides.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featcache.backbones.transforms import Transform
    from featcache.backbones.weights import Weights

PRE_LOGITS, TOKENS, LOGITS = "pre_logits", "tokens", "logits"
#: Layer names that mean the same in every network. No network has a top-level module with one of these names.
STANDARD_LAYERS = (PRE_LOGITS, TOKENS, LOGITS)


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a layer's value is read: what goes into a module, or what comes out of it.

    `module` is a path in `Architecture.root`. A module that is called several times is read at its last call.
    """

    module: str
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How a network's token sequences `(N, T, D)` are laid out: `prefix` tokens, then one token a patch.

    `class_token`: the first prefix token summarises the image; other prefix tokens (registers, distillation) do not.
    `own_pool`: how the network's authors turn tokens into one vector: "cls", "avg" (patches only), "cls+avg", or None
    where it is another way (attention pooling, ...), which only `pre_logits` has.
    """

    prefix: int
    class_token: bool
    own_pool: Literal["cls", "avg", "cls+avg"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A network in eval mode, without gradient, and what its parts mean.

    Args:
        root: A module whose `forward(images)`, with images float32 `(N, 3, S, S)`, runs the whole network.
        inside: The path of the network in `root`, with a dot at its end; empty where `root` is the network itself.
            A layer's name is a module's path in the network, and so are the names of the weights.
        standard: Where the standard layers are read.
        tokens: None where the network has no token sequences.
        pooled: Pooling that belongs to a standard layer itself, by its name (SqueezeNet's `pre_logits`: "avg").
        arguments: What else than the name determines the architecture, as JSON values; part of a cache's identity.
    """

    root: nn.Module
    inside: str = ""
    standard: Mapping[str, Tap]
    tokens: TokenLayout | None = None
    pooled: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Zoo(Protocol):
    """A source of networks. `name` is always a backbone's whole name, its prefix included."""

    prefix: str

    def names(self) -> Sequence[str]:
        """Every name that can be listed, sorted. Raises MissingExtra."""
        ...

    def check(self, name: str) -> None:
        """Raises UnknownName with the nearest names, or MissingExtra."""
        ...

    def transform(self, name: str) -> Transform:
        """The transform of the default weights, resolved into numbers. Raises InvalidOption."""
        ...

    def build(self, name: str, image_size: int) -> Architecture:
        """The network for square images of `image_size` pixels, with its own random initialisation.

        The caller chooses where (`with torch.device("meta")`: shapes without storage) and seeds torch.
        Raises InvalidOption where the network cannot take images of that size.
        """
        ...

    def source_of(self, name: str, weights: str) -> str:
        """What a cache remembers of named weights ("default" or an entry of the zoo's); nothing is downloaded.

        Raises UnknownName, DownloadError.
        """
        ...

    def weights(self, name: str, weights: str) -> Weights:
        """Named weights, downloaded where they are not here yet. Raises UnknownName, DownloadError."""
        ...

    def converted(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        """A checkpoint's tensors under the network's own names and in its shapes, position embeddings interpolated."""
        ...


_MODULES = {"timm:": "timm", "hf:": "transformers", "": "torchvision"}


@cache
def zoo_of(name: str) -> Zoo:
    """The zoo of a backbone's name, chosen by its prefix."""
    module = next(module for prefix, module in _MODULES.items() if name.startswith(prefix))
    found: Zoo = importlib.import_module(f"featcache.backbones.zoos.{module}").ZOO
    return found


def wrapped(network: nn.Module) -> nn.Module:
    """A root that calls the network, as its module `network`: the network's own output can be read like any other."""
    from torch import nn

    class Root(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.network = inner

        def forward(self, images: Tensor) -> Any:
            return self.network(images)

    return Root(network).eval().requires_grad_(False)


def standard_root(network: nn.Module, standard: Callable[[nn.Module, Tensor], Iterator[tuple[str, Any]]]) -> nn.Module:
    """A root that computes standard layers by methods of the network, and passes each through a module of its name.

    Args:
        network: The module `network` of the root.
        standard: Yields the names and values of standard layers, in the order in which they are computed.
    """
    from torch import nn

    class Root(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.network = inner
            for name in STANDARD_LAYERS:
                self.add_module(name, nn.Identity())

        def forward(self, images: Tensor) -> Any:
            value: Any = None
            for name, value in standard(self.network, images):
                value = self.get_submodule(name)(value)
            return value

    return Root(network).eval().requires_grad_(False)
