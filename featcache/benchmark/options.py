"""The options of a benchmark, and three named sets of them: what is trained, on which images, behind which network.

Training end to end may take hours where a cache takes seconds. So it may run on a sample of the images for fewer
epochs; its times are then scaled by the number of images, and marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from featcache.backbones.options import BackboneOptions
from featcache.config import Option
from featcache.errors import InvalidOption, UnknownName
from featcache.heads.config import HeadConfig
from featcache.images.options import ImageOptions

# The notebook's head. Not standardised, because end to end does not know the mean of the features beforehand.
_NOTEBOOK_HEAD = HeadConfig(head="mlp:128,64", activation="leaky_relu", standardize=False)
# Factors of the learning rate, and weight decays, as in a typical search for a better head. Further heads repeat them
# with other seeds.
_RATES = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 0.7, 1.4)
_DECAYS = (0.0, 1e-4, 1e-3, 1e-5, 3e-4, 3e-5, 3e-3, 1e-2)


def _read_head(text: str) -> HeadConfig:
    head = HeadConfig(head=text)
    # A head that is solved refuses the option; the record refuses the head.
    return head if head.architecture.solved else replace(head, standardize=False)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ImageOptions, BackboneOptions):
    """What is measured: images and backbone as `extract` takes them, the head, and how many trainings.

    Attributes:
        scenario: The name of the scenario that these options come from.
        head: The first head. The others differ in learning rate and weight decay.
        sample, sample_epochs: Images of each split and epochs for end to end; None for the same as from the cache.
        device: As in `featcache extract`.

    Raises:
        InvalidOption: Numbers, a backbone or a head that cannot be used.
    """

    PANEL: ClassVar[str] = "What is trained"

    scenario: str = "own"
    head: Annotated[
        HeadConfig,
        Option(
            help="linear, or mlp:SIZES. With the options that train-head has, on features as they are.",
            metavar="<head>",
            read=_read_head,
            completion="heads",
        ),
    ] = _NOTEBOOK_HEAD
    epochs: Annotated[int, Option(help="Of each head.", metavar="<epochs>", least=1)] = 20
    heads: Annotated[int, Option(help="How many heads are tried.", metavar="<heads>", least=1)] = 8
    sample: Annotated[int | None, Option(help="Images end to end.", least=1, python_only=True)] = None
    sample_epochs: Annotated[int | None, Option(help="Epochs end to end.", least=1, python_only=True)] = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for options in (ImageOptions, BackboneOptions):
            options.__post_init__(self)
        for name in ("dataset", "backbone"):
            if not isinstance(getattr(self, name), str | Path):
                raise InvalidOption(
                    f"expected {name} a name or a path, got {getattr(self, name)!r}",
                    hint="each measurement runs in a new process, which opens it again",
                )
        if self.backbone == "pixels":
            raise InvalidOption(
                "pixels computes no network, so there is nothing to compare", hint="--backbone vgg16, for example"
            )
        if len(self.layers) > 1:
            raise InvalidOption(f"expected one layer, got {', '.join(self.layers)}", hint="each layer alone")
        unfit = self.head.architecture.solved or bool(self.head.architecture.templates)
        if self.head.standardize or unfit:
            raise InvalidOption(
                f"end to end cannot train the head {self.head.head}{'' if unfit else ' on standardised features'}",
                hint="a head that is trained by steps: linear, or mlp:128,64",
            )

    @property
    def sample_limit(self) -> int | None:
        """Number of images of each split for end to end; None for all."""
        return min((count for count in (self.sample, self.limit) if count is not None), default=None)

    @property
    def sampled_epochs(self) -> int:
        """Number of epochs for end to end."""
        return min(self.sample_epochs or self.epochs, self.epochs)

    def configs(self) -> tuple[HeadConfig, ...]:
        """The options of all heads, in order, each trained for all epochs."""
        rates, decays = len(_RATES), len(_DECAYS)
        return tuple(
            replace(
                self.head_for(self.epochs),
                lr=self.head.lr * _RATES[number % rates],
                weight_decay=self.head.weight_decay + _DECAYS[number // rates % decays],
                seed=self.head.seed + number // (rates * decays),
            )
            for number in range(self.heads)
        )

    def head_for(self, epochs: int) -> HeadConfig:
        """The first head, trained for exactly `epochs` epochs: the ways are compared over the same number of them."""
        return replace(self.head, max_epochs=epochs, patience=epochs)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = asdict(replace(self, dataset=str(self.dataset), weights=str(self.weights)))
        return values | {"head": self.head.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchmarkOptions:
        """The options from the JSON values of `to_json`. Raises KeyError, TypeError or InvalidOption for others."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        return cls(**{**known, "head": HeadConfig.from_json(values["head"])})


_NOTEBOOK = BenchmarkOptions(scenario="cifar10-vgg16", limit=1000, sample=200, sample_epochs=2)
_SCENARIOS = {
    one.scenario: one
    for one in (
        # Random weights need no download and take the same time as trained ones. Of the quick networks, this one
        # separates digits even with random weights.
        BenchmarkOptions(
            scenario="quick",
            dataset="digits",
            backbone="alexnet",
            weights="random",
            image_size=128,
            limit=480,
            epochs=5,
            heads=4,
            head=HeadConfig(head="linear", lr=3e-3, standardize=False),
        ),
        _NOTEBOOK,
        replace(_NOTEBOOK, scenario="cifar10-inception", backbone="inception_v3"),
    )
}


def scenario_names() -> tuple[str, ...]:
    """The names of all scenarios."""
    return tuple(_SCENARIOS)


def scenario(name: str) -> BenchmarkOptions:
    """The options of a scenario: one of `scenario_names()`. Raises UnknownName, which suggests the nearest."""
    if name not in _SCENARIOS:
        raise UnknownName("scenario", name, _SCENARIOS)
    return _SCENARIOS[name]
