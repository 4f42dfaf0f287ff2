"""Zoos: the sources of networks. The prefix of a backbone's name selects its zoo.

    vgg16                     torchvision
    timm:vit_small_patch14_dinov2
    hf:facebook/dinov2-small  transformers
    open_clip:ViT-B-32        open_clip: image and text encoders of one space
    pixels                    no network: the resized images themselves

A zoo builds a network, loads its weights, and describes where its standard layers are; `probing` finds all layers.
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
#: Layer names with the same meaning in every network. No network has a top-level module with one of these names.
STANDARD_LAYERS = (PRE_LOGITS, TOKENS, LOGITS)


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a layer's value is read: the input or the output of a module.

    `module`: a path in `Architecture.root`. If a module is called several times, its last call counts.
    """

    module: str
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The layout of a network's token sequences `(N, T, D)`: `prefix` tokens, then one token per patch.

    `class_token`: whether the first prefix token summarises the image; other prefix tokens (registers, distillation) do
    not. `own_pool`: how the network itself reduces tokens to one vector: "cls", "avg" (patches only), "cls+avg", or
    None for another method (attention pooling, ...), whose result is only available as `pre_logits`.
    """

    prefix: int
    class_token: bool
    own_pool: Literal["cls", "avg", "cls+avg"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A network in eval mode, without gradients, and the meaning of its parts.

    Args:
        root: A module whose `forward(images)`, with images float32 `(N, 3, S, S)`, runs the whole network.
        inside: The path of the network in `root`, with a dot at its end; empty if `root` is the network itself. Names
            of layers and weights are relative to the network.
        standard: Where the standard layers are read.
        tokens: The token layout; None if the network has no token sequences.
        pooled: The default pooling of standard layers, by name (SqueezeNet's `pre_logits`: "avg").
        arguments: Further JSON values that determine the architecture, besides the name; part of a cache's identity.
    """

    root: nn.Module
    inside: str = ""
    standard: Mapping[str, Tap]
    tokens: TokenLayout | None = None
    pooled: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Zoo(Protocol):
    """A source of networks. `name` is always the full name of a backbone, including the prefix."""

    prefix: str

    def names(self) -> Sequence[str]:
        """All names that can be listed, sorted. Raises MissingExtra."""
        ...

    def check(self, name: str) -> None:
        """Raises UnknownName with the nearest names, or MissingExtra."""
        ...

    def transform(self, name: str) -> Transform:
        """The transform of the default weights, with all numbers resolved. Raises InvalidOption."""
        ...

    def build(self, name: str, image_size: int) -> Architecture:
        """The network for square images of `image_size` pixels a side, with its own random initialisation.

        The caller chooses the device (`with torch.device("meta")`: shapes without storage) and seeds torch.
        Raises InvalidOption if the network does not support this size.
        """
        ...

    def source_of(self, name: str, weights: str) -> str:
        """The source that a cache records for named weights ("default" or a name of the zoo's); nothing is downloaded.

        Raises UnknownName, DownloadError.
        """
        ...

    def weights(self, name: str, weights: str) -> Weights:
        """Load named weights, and download them if necessary. Raises UnknownName, DownloadError."""
        ...

    def convert(
        self, name: str, tensors: Mapping[str, Tensor], architecture: Architecture, image_size: int
    ) -> Mapping[str, Tensor]:
        """Convert a checkpoint's tensors to the network's names and shapes; position embeddings are interpolated."""
        ...


#: What to do where weights cannot be downloaded.
OFFLINE_HINT = (
    "without a network: --weights PATH to a .safetensors or .pth file, or --weights random to try the path with an "
    "untrained network"
)
#: The prefix of backbones with a text encoder, whose `pre_logits` are embeddings in one space with those of texts.
TEXT_PREFIX = "open_clip:"
_MODULES = {"timm:": "timm", "hf:": "transformers", TEXT_PREFIX: "open_clip", "": "torchvision"}


@cache
def zoo_of(name: str) -> Zoo:
    """The zoo of a backbone, selected by the prefix of its name."""
    module = next(module for prefix, module in _MODULES.items() if name.startswith(prefix))
    zoo: Zoo = importlib.import_module(f"featcache.backbones.zoos.{module}").ZOO
    return zoo


def wrap(network: nn.Module) -> nn.Module:
    """Wrap a network as the module `network` of a root, so that its output can be read like that of any module."""
    from torch import nn

    class Root(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.network = inner

        def forward(self, images: Tensor) -> Any:
            return self.network(images)

    return Root(network).eval().requires_grad_(False)


def standard_root(network: nn.Module, standard: Callable[[nn.Module, Tensor], Iterator[tuple[str, Any]]]) -> nn.Module:
    """A root that computes standard layers by methods of the network, and passes each through a module with its name.

    Args:
        network: The module `network` of the root.
        standard: Yields the names and values of standard layers, in the order of computation.
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
