"""The options of `predict` and of `export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from featcache.config import Option, check
from featcache.errors import InvalidOption

#: Where weights are: one source, or one for each backbone by its name; None: where they were.
Weights = str | Path | Mapping[str, str | Path] | None


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What a prediction contains, and how exactly its features are computed. Raises InvalidOption."""

    PANEL: ClassVar[str] = "What is shown"

    top: Annotated[int, Option(help="So many classes an image.", metavar="<classes>", least=1)] = 3
    neighbours: Annotated[
        int,
        Option(
            help="So many of the most similar cached train images, by cosine similarity; needs the cache.",
            metavar="<images>",
            least=0,
        ),
    ] = 0
    precision: Annotated[
        Literal["fp32", "auto", "bf16", "fp16"],
        Option(help="How features are computed.", panel="How it runs"),
    ] = "fp32"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class MovedWeights:
    """Where the weights of a recorded backbone are now. Raises InvalidOption."""

    PANEL: ClassVar[str] = "How it runs"

    weights: Annotated[
        tuple[str, ...],
        Option(
            help="Where the backbone's weights are now; they must be the same weights. Of several backbones: "
            "BACKBONE=SOURCE, repeated.",
            metavar="<source>",
            default="where they were",
        ),
    ] = ()

    def __post_init__(self) -> None:
        check(self)
        pairs = [value.partition("=") for value in self.weights]
        if len(pairs) > 1 and not all(name and source for name, _, source in pairs):
            raise InvalidOption("expected --weights BACKBONE=SOURCE for each of several backbones")

    @property
    def by_name(self) -> Weights:
        """The one source, or one for each backbone by its name; None where none was given."""
        if not self.weights:
            return None
        name, _, source = self.weights[0].partition("=")
        # The path of a file may hold = too.
        if len(self.weights) == 1 and (not (name and source) or Path(self.weights[0]).exists()):
            return self.weights[0]
        return {name: source for name, _, source in (value.partition("=") for value in self.weights)}

    def of(self, backbone: str) -> str | Path | None:
        """The source for the only backbone there is. Raises InvalidOption where another one is named."""
        found = self.by_name
        if not isinstance(found, Mapping):
            return found
        if unknown := sorted({*found} - {backbone}):
            raise InvalidOption(f"--weights: expected {backbone}, got {', '.join(unknown)}")
        return found[backbone]


@dataclass(frozen=True, kw_only=True)
class RunExportOptions:
    """How the file of a run is checked. Raises InvalidOption."""

    PANEL: ClassVar[str] = "Of a run"

    verify_limit: Annotated[int, Option(help="On so many of them.", metavar="<images>", least=1)] = 32

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class CacheExportOptions:
    """Which rows of a cache are written. Raises InvalidOption."""

    PANEL: ClassVar[str] = "Of a cache"

    splits: Annotated[
        tuple[str, ...] | None,
        Option(help="train, val or test; may be repeated.", flags=("--split",), default="all", metavar="<split>"),
    ] = None
    layers: Annotated[
        tuple[str, ...] | None, Option(help="May be repeated.", flags=("--layer",), default="all", metavar="<name>")
    ] = None
    sprite: Annotated[bool, Option(help="For the projector: every image as its point.")] = False

    def __post_init__(self) -> None:
        check(self)
