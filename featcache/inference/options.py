"""The options of `predict`, `search` and `export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from featcache.config import Option, check
from featcache.errors import InvalidOption

#: Where weights are: one source, or one for each backbone by its name; None: where they were.
Weights = str | Path | Mapping[str, str | Path] | None

#: The formats of one backbone and head, and those of a cache's rows. atlas is of both: with a run it has predictions.
RUN_FORMATS = ("onnx", "pt2", "torch", "atlas")
CACHE_FORMATS = ("npz", "npy", "safetensors", "parquet", "csv", "projector", "atlas")
#: These contain augmented views; the others have one row per image.
FORMATS_WITH_VIEWS = ("npz", "npy", "safetensors")
#: These show features as points, and take `--images`.
POINT_FORMATS = ("projector", "atlas")


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
class SearchOptions:
    """What is searched, and how many images are found. Raises InvalidOption."""

    PANEL: ClassVar[str] = "What is searched"

    count: Annotated[
        int,
        Option(help="So many, the most similar first.", flags=("--count", "-k"), metavar="<images>", least=1),
    ] = 10
    splits: Annotated[
        tuple[str, ...] | None,
        Option(help="train, val or test; may be repeated.", flags=("--split",), default="all", metavar="<split>"),
    ] = None
    layers: Annotated[
        tuple[str, ...] | None,
        Option(
            help="A layer to compare, or all. May be repeated: layers are compared side by side.",
            flags=("--layer",),
            default="the only one",
            metavar="<name>",
        ),
    ] = None

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
    images: Annotated[
        bool, Option(help="For projector and atlas: also the images, as thumbnails; they must still exist.")
    ] = False
    map: Annotated[
        Literal["pca", "tsne", "umap"] | None,
        Option(help="For atlas: how x and y are made.", default="tsne up to 5,000 images, else pca"),
    ] = None

    def __post_init__(self) -> None:
        check(self)
