"""The scenarios of the benchmark: images, backbone, heads, and sizes. Own scenarios are made from the named ones.

End to end takes hours where a cache takes seconds, so a scenario has two sizes. Cached training runs at full size. End
to end runs on a sample of the same images for fewer epochs; its times are scaled by the number of images and marked. If
both sizes are equal, nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featcache.backbones.options import Pool
from featcache.errors import InvalidOption, UnknownName
from featcache.heads.config import HeadConfig

# These two do not compare the four ways.
GROWTH, STREAMING = "growth", "bigger-than-memory"
# The notebook's head. Not standardised, because end to end does not know the mean of the features beforehand.
_NOTEBOOK_HEAD = HeadConfig(head="mlp:128,64", activation="leaky_relu", standardize=False)
# Factors of the learning rate, and weight decays, as in a typical search for a better head.
_RATES = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 0.7, 1.4)
_DECAYS = (0.0, 1e-4, 1e-3, 1e-5, 3e-4, 3e-5, 3e-3, 1e-2)
# Further heads repeat these combinations with other seeds.
MOST_TOGETHER = len(_RATES) * len(_DECAYS)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is measured.

    Attributes:
        name: The scenario's name.
        about: A description in one line.
        dataset, backbone, weights, image_size, pool, device: As in `featcache extract`.
        splits: The splits to use; None for all.
        images: Number of images of each split.
        epochs: Number of epochs of each head.
        heads: Number of heads.
        sample, sample_epochs: Images of each split and epochs for end to end; None for all.
        head: The first head; the others differ in learning rate and weight decay.
        together: Whether the cached heads are trained by a sweep, instead of one after another.

    Raises:
        InvalidOption: Numbers, a backbone or a head that cannot be used.
    """

    name: str
    about: str
    dataset: str | Path = "cifar10"
    backbone: str = "vgg16"
    weights: str = "default"
    image_size: int | None = None
    pool: Pool | None = None
    splits: tuple[str, ...] | None = None
    images: int
    epochs: int
    heads: int
    sample: int | None = None
    sample_epochs: int | None = None
    head: HeadConfig = field(default_factory=lambda: _NOTEBOOK_HEAD)
    together: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("images", "epochs", "heads", "sample", "sample_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOption(f"expected {name} of at least 1, got {value}")
        if self.backbone == "pixels":
            raise InvalidOption(
                "pixels computes no network, so there is nothing to compare", hint="--backbone vgg16, for example"
            )
        if self.together and self.heads > MOST_TOGETHER:
            raise InvalidOption(f"expected at most {MOST_TOGETHER} heads in one sweep, got {self.heads}")
        if self.head.standardize or self.head.architecture.solved:
            raise InvalidOption(
                f"end to end cannot train the head {self.head.head}"
                f"{' on standardised features' if self.head.standardize else ''}",
                hint="a head that is trained by steps: linear, or mlp:128,64",
            )

    @property
    def scaled(self) -> bool:
        """Whether end to end runs on fewer images or epochs than the cached ways."""
        return (self.sample_images, self.sampled_epochs) != (self.images, self.epochs)

    @property
    def sample_images(self) -> int:
        """Number of images of each split for end to end."""
        return self.images if self.sample is None else min(self.sample, self.images)

    @property
    def sampled_epochs(self) -> int:
        """Number of epochs for end to end."""
        return self.epochs if self.sample_epochs is None else min(self.sample_epochs, self.epochs)

    def configs(self) -> tuple[HeadConfig, ...]:
        """The options of all heads, in order, each trained for all epochs."""
        return tuple(
            replace(
                self.head_for(self.epochs),
                lr=self.head.lr * _RATES[number % len(_RATES)],
                weight_decay=_DECAYS[number // len(_RATES) % len(_DECAYS)],
                seed=self.head.seed + number // MOST_TOGETHER,
            )
            for number in range(self.heads)
        )

    def head_for(self, epochs: int) -> HeadConfig:
        """The first head, trained for exactly `epochs` epochs."""
        return replace(self.head, max_epochs=epochs, patience=epochs)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, for `json.dumps`."""
        splits = None if self.splits is None else list(self.splits)
        return asdict(self) | {"dataset": str(self.dataset), "splits": splits, "head": self.head.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scenario:
        """The scenario from the JSON values of `to_json`."""
        splits = None if values["splits"] is None else tuple(values["splits"])
        return cls(**{**values, "splits": splits, "head": HeadConfig.from_json(values["head"])})


_SCENARIOS = {
    one.name: one
    for one in (
        Scenario(
            name="quick",
            about="handwritten digits through an untrained AlexNet, everything measured, under a minute",
            dataset="digits",
            # Random weights need no download and take the same time as trained ones. Of the quick networks, this one
            # separates digits even with random weights.
            backbone="alexnet",
            weights="random",
            image_size=128,
            images=600,
            epochs=5,
            heads=4,
            head=replace(_NOTEBOOK_HEAD, head="linear", activation="relu", lr=3e-3),
        ),
        Scenario(
            name="cifar10-vgg16",
            about="the notebook's experiment: CIFAR-10 at 224x224, VGG16, a head of 128-64",
            images=1000,
            epochs=20,
            heads=8,
            sample=200,
            sample_epochs=2,
        ),
        Scenario(
            name="cifar10-inception",
            about="the notebook's other experiment: CIFAR-10 at 299x299, Inception v3, a head of 128-64",
            backbone="inception_v3",
            images=1000,
            epochs=20,
            heads=8,
            sample=200,
            sample_epochs=2,
        ),
        Scenario(
            name="many-heads",
            about="a search over 64 linear heads: VGG16 at 64x64, pooled to 512 features",
            image_size=64,
            pool="avg",
            images=2000,
            epochs=20,
            heads=64,
            sample=640,
            sample_epochs=2,
            head=replace(_NOTEBOOK_HEAD, head="linear", activation="relu"),
            together=True,
        ),
        Scenario(
            name=GROWTH,
            about="time against images, 1,000 to 16,000; VGG16's features at 32x32 are as wide as at 224",
            image_size=32,
            splits=("train",),
            images=16000,
            epochs=3,
            heads=1,
            sample=2000,
            sample_epochs=1,
        ),
        Scenario(
            name=STREAMING,
            about="a cache larger than the memory that its training may take",
            image_size=32,
            splits=("train",),
            images=24000,
            epochs=3,
            heads=1,
        ),
    )
}


def scenario_names() -> tuple[str, ...]:
    """List the names of all scenarios.

    Returns:
        The names, in the order of the listing on screen.
    """
    return tuple(_SCENARIOS)


def scenario(name: str) -> Scenario:
    """Look up a scenario by name.

    Args:
        name: One of `scenario_names()`.

    Returns:
        The scenario.

    Raises:
        UnknownName: No scenario has this name; the error suggests the nearest.
    """
    if name not in _SCENARIOS:
        raise UnknownName("scenario", name, _SCENARIOS)
    return _SCENARIOS[name]
