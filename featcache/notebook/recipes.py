"""The notebook's nine experiments on CIFAR-10, as recipes: records of backbone, input, head and published result.

A recipe describes its features in plain fields, because this package does not import extraction; the command line
connects the two. `notebook` is the result that the original printed: that of the last epoch, on the images that
featcache calls val, 10,000 of the 50,000 train images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """The backbone's input: square images of `image_size` pixels a side, normalised.

    `image_size`: None for the size that belongs to the weights. `normalize`: "weights" (the mean and std that belong
    to the weights) or "half" ((x-0.5)/0.5).
    """

    image_size: int | None = None
    normalize: Literal["weights", "half"] = "weights"


@dataclass(frozen=True, kw_only=True)
class NotebookResult:
    """The result of an experiment in the notebook; None for values that it does not give.

    `accuracy`: a fraction from 0 to 1; `loss`: mean cross-entropy; both of the last epoch, on val.
    `minutes`: the least duration, with the backbone computed again in every epoch.
    """

    accuracy: float
    loss: float
    epochs: int | None = None
    minutes: float | None = None
    remark: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named experiment: the last features of `backbone`, a head and its settings, and the notebook's result.

    `input`: the input that the weights were trained for. `written`: the notebook's own input, if it differs.
    `weights`: the source of the backbone's weights, as a cache records it; None for a backbone without weights.
    `feature_dim`: width D of the head's input.
    """

    name: str
    backbone: str
    input: InputSettings
    feature_dim: int
    head: HeadConfig
    notebook: NotebookResult
    weights: str | None = None
    written: InputSettings | None = None

    def as_written(self) -> Recipe:
        """The same experiment with the notebook's own image size and normalisation."""
        return self if self.written is None else replace(self, input=self.written)

    def require_backbone(self, backbone: str) -> None:
        """Raise InvalidOption unless features of `backbone` are what this recipe is made for."""
        if backbone != self.backbone:
            raise InvalidOption(
                f"expected features of {self.backbone} for the recipe {self.name}, got those of {backbone}",
                hint="another --recipe, or a cache of that backbone",
            )

    def width_doubt(self, feature_dim: int) -> str | None:
        """A warning about features of another width D than the recipe's; None for the same width."""
        if feature_dim == self.feature_dim:
            return None
        size = "" if self.input.image_size is None else f" --image-size {self.input.image_size}"
        return (
            f"the recipe {self.name} is made for {self.feature_dim:,} features, got {feature_dim:,}: its settings are "
            "used anyway, but the notebook's numbers are those of another head; "
            f"`featcache extract --backbone {self.backbone}{size}` makes the expected features"
        )

    def head_options(self) -> dict[str, Any]:
        """The head's settings by name, without the seed and the layers, which are not part of a recipe."""
        options = asdict(self.head)
        del options["seed"], options["layers"]
        return options

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self) | {"head": self.head_options()}


def recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises UnknownName, which suggests the nearest names."""
    try:
        return _RECIPES[name]
    except KeyError:
        raise UnknownName("recipe", name, _RECIPES, listed_by="featcache recipes") from None


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes, in the notebook's order."""
    return tuple(_RECIPES)


def _mlp(name: str, notebook: NotebookResult, *, hidden: str = "64,16", **settings: Any) -> Recipe:
    """One of the perceptrons on raw pixels."""
    return Recipe(
        name=name,
        backbone="pixels",
        input=InputSettings(image_size=32, normalize="half"),
        feature_dim=3 * 32 * 32,
        head=HeadConfig(head=f"mlp:{hidden}", standardize=False, val_cut="random", **settings),
        notebook=notebook,
    )


# The notebook gives no batch size for the two networks: that of its perceptrons is used.
_NETWORK_HEAD = HeadConfig(head="mlp:128,64", activation="leaky_relu", standardize=False, val_cut="random")

_RECIPES: Mapping[str, Recipe] = {
    one.name: one
    for one in (
        _mlp("mlp", NotebookResult(accuracy=0.5021, loss=1.4608, epochs=13)),
        _mlp("mlp-l1", NotebookResult(accuracy=0.4976, loss=1.4784), l1=1e-5),
        # The notebook does not give the weight decay.
        _mlp("mlp-l2", NotebookResult(accuracy=0.4950, loss=1.5035, epochs=14), weight_decay=1e-4),
        _mlp("mlp-leaky", NotebookResult(accuracy=0.5092, loss=1.4292, epochs=11), activation="leaky_relu"),
        _mlp("mlp-dropout", NotebookResult(accuracy=0.4190, loss=1.6188, epochs=39), dropout=0.5),
        _mlp("mlp-wide", NotebookResult(accuracy=0.5278, loss=1.4579, epochs=9), hidden="256,64"),
        _mlp(
            "mlp-best",
            NotebookResult(accuracy=0.5250, loss=1.5264, epochs=11),
            hidden="256,64",
            activation="leaky_relu",
        ),
        Recipe(
            name="vgg16",
            backbone="vgg16",
            input=InputSettings(),
            feature_dim=512 * 7 * 7,
            head=_NETWORK_HEAD,
            notebook=NotebookResult(accuracy=0.8548, loss=0.7108, epochs=6, minutes=35),
            weights="torchvision:VGG16_Weights.IMAGENET1K_V1",
            written=InputSettings(image_size=244, normalize="half"),
        ),
        Recipe(
            name="inception_v3",
            backbone="inception_v3",
            input=InputSettings(),
            feature_dim=2048,
            head=_NETWORK_HEAD,
            notebook=NotebookResult(
                accuracy=0.7819, loss=0.6332, epochs=22, minutes=60, remark="over an hour, stopped by hand"
            ),
            weights="torchvision:Inception_V3_Weights.IMAGENET1K_V1",
            written=InputSettings(image_size=299, normalize="half"),
        ),
    )
}
