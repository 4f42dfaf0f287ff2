"""What is measured: images, backbone, head, and how much of it. Named scenarios, and one's own on top of them.

End to end takes hours where a cache takes seconds, so a scenario has two sizes. What is cached is trained at full
size; end to end runs on a sample of the same images for fewer epochs, and its times are scaled by images and marked
as such. Where both sizes are equal nothing is scaled.
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
# The notebook's head: nothing standardised, for end to end could not know the features' mean beforehand.
_NOTEBOOK_HEAD = HeadConfig(head="mlp:128,64", activation="leaky_relu", standardize=False)
# Learning rate times, and weight decay: what somebody tries who looks for a better head.
_RATES = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 0.7, 1.4)
_DECAYS = (0.0, 1e-4, 1e-3, 1e-5, 3e-4, 3e-5, 3e-3, 1e-2)
# From there on heads differ in their seed alone.
MOST_TOGETHER = len(_RATES) * len(_DECAYS)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is measured.

    `images`: of each split. `epochs`: of each head; `heads`: how many are tried. `sample`, `sample_epochs`: what end
    to end is run on; None for all of it. `head`: the first head; the others differ in learning rate and weight
    decay. `together`: the cached ones are trained by a sweep, not one after another. `splits`: None for all there
    are. `about`: one line for people.

    Raises InvalidOption for numbers that cannot be used.
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
                raise InvalidOption(f"expected --{name.replace('_', '-')} of at least 1, got {value}")
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
        """Whether end to end is run on less than all of it."""
        return (self.sample_images, self.sampled_epochs) != (self.images, self.epochs)

    @property
    def sample_images(self) -> int:
        """Images of each split that end to end is run on."""
        return self.images if self.sample is None else min(self.sample, self.images)

    @property
    def sampled_epochs(self) -> int:
        """Epochs that end to end is run for."""
        return self.epochs if self.sample_epochs is None else min(self.sample_epochs, self.epochs)

    def configs(self) -> tuple[HeadConfig, ...]:
        """All heads, the first one first, each trained for all epochs."""
        return tuple(
            replace(
                self.trained_for(self.epochs),
                lr=self.head.lr * _RATES[number % len(_RATES)],
                weight_decay=_DECAYS[number // len(_RATES) % len(_DECAYS)],
                seed=self.head.seed + number // MOST_TOGETHER,
            )
            for number in range(self.heads)
        )

    def trained_for(self, epochs: int) -> HeadConfig:
        """The first head, for exactly so many epochs."""
        return replace(self.head, max_epochs=epochs, patience=epochs)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        splits = None if self.splits is None else list(self.splits)
        return asdict(self) | {"dataset": str(self.dataset), "splits": splits, "head": self.head.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scenario:
        """The scenario that `to_json` described."""
        splits = None if values["splits"] is None else tuple(values["splits"])
        return cls(**{**values, "splits": splits, "head": HeadConfig.from_json(values["head"])})


_SCENARIOS = {
    one.name: one
    for one in (
        Scenario(
            name="quick",
            about="handwritten digits through an untrained AlexNet, everything measured, under a minute",
            dataset="digits",
            # Of the quick networks the one that tells digits apart without having learnt: random weights need no
            # download, and take the same time as any others.
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
    """The names of all scenarios."""
    return tuple(_SCENARIOS)


def scenario(name: str) -> Scenario:
    """A named scenario. Raises UnknownName."""
    if name not in _SCENARIOS:
        raise UnknownName("scenario", name, _SCENARIOS)
    return _SCENARIOS[name]
