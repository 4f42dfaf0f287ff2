"""The options that determine a cache: which images, which backbone, how features are stored."""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from featcache.backbones.options import BackboneOptions
from featcache.cache.spec import Selection
from featcache.columns import ColumnOptions
from featcache.config import Option, check, command_words
from featcache.errors import InvalidOption
from featcache.images.options import ImageOptions

if TYPE_CHECKING:
    from featcache.images.location import Location

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runner = Literal["auto", "eager", "compiled", "openvino", "ncnn"]


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How features are computed and stored, and how many views an image has. Raises InvalidOption."""

    PANEL: ClassVar[str] = "Which features"

    dtype: Annotated[
        Literal["float16", "float32"] | None, Option(help="How features are stored.", default="float16", advanced=True)
    ] = None
    precision: Annotated[
        Precision,
        Option(help="auto, fp32, bf16, or fp16: how features are computed.", metavar="<precision>", advanced=True),
    ] = "auto"
    runner: Annotated[
        Runner,
        Option(
            help="What computes: torch as it is (eager), compiled first (a minute), OpenVINO (CPUs, an extra, a second "
            "to start), or ncnn (CPUs, an extra). auto: the fastest for so many images.",
            metavar="<runner>",
            advanced=True,
        ),
    ] = "auto"
    views: Annotated[
        int,
        Option(
            help="Views of each train image. The plain image, and others that are augmented: cropped, "
            "mirrored, coloured.",
            metavar="<views>",
            least=1,
        ),
    ] = 1
    view_seed: Annotated[int, Option(help="Which crops, mirrors and colours.", metavar="<seed>", advanced=True)] = 0
    view_flip: Annotated[
        bool,
        Option(
            help="Whether views may be mirrored; not for digits, text and what else has a left and a right.",
            flags=("--view-flip/--no-view-flip",),
            advanced=True,
        ),
    ] = True

    def __post_init__(self) -> None:
        check(self)
        if self.views == 1 and (self.view_seed or not self.view_flip):
            raise InvalidOption(
                f"{'--view-seed' if self.view_seed else '--no-view-flip'} has no effect without --views: the only "
                "view of an image is the plain one",
                hint="add views, for example --views 4",
            )


@dataclass(frozen=True, kw_only=True)
class Request(StorageOptions, BackboneOptions, ImageOptions, ColumnOptions):
    """The options of `featcache extract` that determine what a cache holds, and the data folder.

    Raises InvalidOption for an invalid value, UnknownName for an unknown split.
    """

    data_dir: Path = field(default_factory=lambda: Path("data"))

    def __post_init__(self) -> None:
        for options in (ImageOptions, ColumnOptions, BackboneOptions, StorageOptions):
            options.__post_init__(self)
        if self.views > 1 and self.splits and "train" not in self.splits:
            raise InvalidOption(
                f"only train images have views, and --split asks for {', '.join(self.splits)}",
                hint="leave --views out, or add --split train",
            )
        object.__setattr__(self, "data_dir", Path(self.data_dir))

    @property
    def backbone_name(self) -> str:
        """The backbone's name, as given."""
        return self.name

    @property
    def backbone_options(self) -> BackboneOptions:
        """The options that a backbone's description depends on; for a Network those that it was opened with."""
        if not isinstance(self.backbone, str):
            return self.backbone.options or BackboneOptions(backbone=self.backbone.name)
        return BackboneOptions(
            backbone=self.backbone,
            layers=self.layers,
            pool=self.pool,
            image_size=self.image_size,
            resize=self.resize,
            normalize=self.normalize,
            weights=self.weights,
        )

    @property
    def spec_view_seed(self) -> int | None:
        """The view seed in a spec: None where there are no augmented views."""
        return self.view_seed if self.views > 1 else None

    @property
    def features_dir(self) -> Path:
        """The folder of caches."""
        return self.data_dir / "features"

    @property
    def datasets_dir(self) -> Path:
        """The folder of downloaded data sets."""
        return self.data_dir / "datasets"

    @property
    def weights_dir(self) -> Path:
        """The folder of downloaded packages that contain weights."""
        return self.data_dir / "weights"

    @functools.cached_property
    def location(self) -> Location:
        """Where the images are. Raises SourceError, UnknownName."""
        from featcache.images.location import locate

        return locate(self.dataset, split_by_folder=self.split_by_folder)

    @property
    def column_options(self) -> ColumnOptions:
        """Which columns become targets."""
        return ColumnOptions(columns=self.columns, kinds=self.kinds)

    @property
    def origin(self) -> str:
        """The set's name or absolute path, as a selection records it. No image is listed for it."""
        return self.location.origin

    @property
    def command(self) -> str:
        """The `featcache extract` that makes this cache; for images that were given from Python the call."""
        if self.location.is_object:
            return f"featcache.extract(images, {self.backbone_name!r}, ...)"
        words = ["featcache", "extract", "--backbone", self.backbone_name, "--dataset", self.origin]
        words += command_words(self, without=("backbone", "dataset", "split_by_folder"))
        if self.data_dir != Request().data_dir:
            words += ["--data-dir", str(self.data_dir)]
        return shlex.join(words)

    @property
    def selection(self) -> Selection:
        """The selection of images that a cache records."""
        return Selection(source=self.origin, splits=self.splits, limit=self.limit, select_seed=self.select_seed)
