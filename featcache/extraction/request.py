"""What somebody asks for: which images, through which backbone, kept how. Frozen, and it checks itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featcache.backbones.options import BackboneOptions
from featcache.cache.spec import Selection
from featcache.errors import InvalidOption, UnknownName
from featcache.images.sources import SPLITS, ImageSource, origin_of

if TYPE_CHECKING:
    from featcache.backbones.network import Network

#: What computes a network: torch as it is, a program of torch.compile, or one of OpenVINO.
RUNNERS = ("eager", "compiled", "openvino", "ncnn")

OnError = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `featcache extract`, as they were said; None and "auto" stand for what was left out.

    `dataset`: a set's name, a path, or an ImageSource. `backbone`: a name, or a Network of one's own.
    `dtype`: how features are stored, "float16" or "float32". `limit`: images per split. `views`: rows per train
    image, the first of them plain, the others augmented as `view_seed` says, and mirrored only with `view_flip`.
    Raises InvalidOption for a value that cannot be used, UnknownName for a split that is none.
    """

    dataset: str | Path | ImageSource = "cifar10"
    backbone: str | Network = "vgg16"
    layers: tuple[str, ...] = ()
    pool: str | None = None
    image_size: int | None = None
    resize: Literal["squash", "crop"] = "squash"
    normalize: str | None = None
    weights: str | Path = "default"
    dtype: str | None = None
    precision: str = "auto"
    runner: str = "auto"
    views: int = 1
    view_seed: int = 0
    view_flip: bool = True
    splits: tuple[str, ...] | None = None
    limit: int | None = None
    select_seed: int = 0
    data_dir: Path = field(default_factory=lambda: Path("data"))

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop"):
            raise InvalidOption(f"expected --resize squash or crop, got {self.resize!r}")
        if self.dtype not in (None, "float16", "float32"):
            raise InvalidOption(f"expected --dtype float16 or float32, got {self.dtype!r}")
        if self.runner not in ("auto", *RUNNERS):
            raise InvalidOption(f"expected --runner auto, {', '.join(RUNNERS)}, got {self.runner!r}")
        for name in ("limit", "image_size", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"expected --{name.replace('_', '-')} of at least 1, got {value}")
        for split in self.splits or ():
            if split not in SPLITS:
                raise UnknownName("split", split, SPLITS)
        if self.views > 1 and self.splits and "train" not in self.splits:
            raise InvalidOption(
                f"only train images have views, and --split asks for {', '.join(self.splits)}",
                hint="leave --views out, or add --split train",
            )
        if self.views == 1 and (self.view_seed or not self.view_flip):
            raise InvalidOption(
                f"{'--view-seed' if self.view_seed else '--no-view-flip'} says nothing without --views: the only row "
                "of an image is the plain one",
                hint="ask for some, for example --views 4",
            )
        # An order or a repetition means nothing here: equal requests are equal.
        ordered = tuple(split for split in SPLITS if split in self.splits) if self.splits else None
        object.__setattr__(self, "splits", ordered)
        object.__setattr__(self, "layers", tuple(dict.fromkeys(self.layers)))
        object.__setattr__(self, "data_dir", Path(self.data_dir))

    @property
    def backbone_name(self) -> str:
        return self.backbone if isinstance(self.backbone, str) else self.backbone.name

    @property
    def backbone_options(self) -> BackboneOptions:
        """The part of the options that a backbone's description depends on."""
        return BackboneOptions(
            backbone=self.backbone_name,
            layers=self.layers,
            pool=self.pool,
            image_size=self.image_size,
            resize=self.resize,
            normalize=self.normalize,
            weights=self.weights,
        )

    @property
    def spec_view_seed(self) -> int | None:
        """The view seed as a spec holds it: None where there is nothing to draw."""
        return self.view_seed if self.views > 1 else None

    @property
    def features_dir(self) -> Path:
        """Where caches lie."""
        return self.data_dir / "features"

    @property
    def datasets_dir(self) -> Path:
        """Where downloaded data sets lie."""
        return self.data_dir / "datasets"

    @property
    def weights_dir(self) -> Path:
        """Where downloaded packages that carry weights lie."""
        return self.data_dir / "weights"

    @property
    def origin(self) -> str:
        """What names the set in a selection: its name, or the absolute path; nothing is opened."""
        if isinstance(self.dataset, ImageSource):
            return self.dataset.origin
        return origin_of(self.dataset)

    @property
    def selection(self) -> Selection:
        """Which images of which set."""
        return Selection(source=self.origin, splits=self.splits, limit=self.limit, select_seed=self.select_seed)
