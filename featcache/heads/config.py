"""What can be asked of a head's training: one frozen record that checks itself.

A recipe is such a record with a name; a sweep is many of them over one cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from featcache.errors import InvalidOption, UnknownName
from featcache.heads.architectures import Architecture, check_activation, parse_head
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, DRAW, TRAIN_VIEWS

LARGEST_SEED = 2**32 - 1
# With fewer rows batch norm has nothing to take a deviation of.
SMALLEST_NORMED_BATCH = 8
STEP_OPTIONS = (
    *("activation", "dropout", "batch_norm", "mixup", "noise", "lr", "weight_decay", "l1"),
    *("optimizer", "momentum", "schedule", "label_smoothing", "class_weights", "standardize"),
    *("train_views", "head_batch_size", "max_epochs", "patience", "min_delta"),
)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The options of one training. Equal configs on equal features give equal heads on one machine.

    `layers`: the cache's layers to read, side by side; None for the only one there is.
    `batch_norm`: normalise what each hidden layer gives, over the batch; folded into the layer before it is stored.
    `mixup`: train on mixtures of two rows, whose share is drawn from Beta(mixup, mixup); 0 for none.
    `noise`: deviation of Gaussian noise on the train features, standardised unless `standardize` is off; 0 for none.
    `l1`: times the sum of absolute values of every trainable parameter, added to the loss.
    `weight_decay`: the optimiser's own; AdamW takes it off the weights, the others add it to the gradient.
    `optimizer`, `momentum` (SGD's alone), `schedule`: how a step is taken, and how lr falls: over `max_epochs` along a
    cosine, or to a tenth whenever val loss stays on a plateau for more than half of `patience`.
    `label_smoothing`: share of every label that is spread over all classes. `class_weights`: "balanced" lets every
    class count the same in the loss, however many images it has.
    `standardize`: train on features of mean 0 and deviation 1, as train has them; the stored head needs neither. On,
    because one learning rate then suits small features and large ones; the notebook's recipes do without. Of more than
    a million train rows a sample of 131,072 is looked at, and the run says so.
    `train_views`: with "all" an epoch passes over every view of every train image; with "draw" over every image once,
    in one of its views, drawn anew from `seed` (the plain one among them). None for the default, and for a cache
    without augmented views, which takes nothing else.
    `patience`, `min_delta`: training stops after that many epochs whose val loss is not lower than the lowest
    that counted by more than `min_delta`.
    `target`: what is learned: a target of the cache, or several of numbers. `group`: the target of groups whose images
    stay on one side of every cut. `loss`: what is made small for numbers.
    `val_fraction`, `val_seed`, `val_cut`: how val is cut from train where the set has no val split of its own:
    `stratified`, with every class (or stretch of numbers) in its share, or `random`, the notebook's permutation.
    `seed`: initial weights, order and dropout. A head that is solved (logreg, ridge, centroid, knn) draws nothing.

    What belongs to training by steps (STEP_OPTIONS) has to be left as it is for a head that is solved.

    Raises InvalidOption or UnknownName for a value that cannot be used.
    """

    head: str = "mlp:128,64"
    layers: tuple[str, ...] | None = None
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    mixup: float = 0.0
    noise: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 0.0
    l1: float = 0.0
    optimizer: str = "adam"
    momentum: float = 0.9
    schedule: str = "constant"
    label_smoothing: float = 0.0
    class_weights: str = "none"
    standardize: bool = True
    train_views: str | None = None
    head_batch_size: int = 64
    max_epochs: int = 50
    patience: int = 5
    min_delta: float = 0.001
    val_fraction: float = 0.2
    val_seed: int = 42
    seed: int = 0
    target: tuple[str, ...] = ("label",)
    group: str | None = None
    val_cut: str = "stratified"
    loss: str = "mse"

    def __post_init__(self) -> None:
        architecture = parse_head(self.head)
        check_activation(self.activation)
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise UnknownName(name.replace("_", " "), str(getattr(self, name)), known)
        if self.train_views not in (None, *TRAIN_VIEWS):
            raise UnknownName("train views", str(self.train_views), TRAIN_VIEWS)
        for name, rule in _NUMBERS.items():
            rule.check(name, getattr(self, name))
        for name in ("standardize", "batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidOption(f"expected {_option(name)} to be true or false, got {getattr(self, name)!r}")
        if self.momentum != type(self).momentum and self.optimizer != "sgd":
            raise InvalidOption(
                f"--momentum belongs to sgd, and the optimizer is {self.optimizer}",
                hint="--optimizer sgd, or leave it out",
            )
        if architecture.solved:
            self._check_steps_untouched()
        between = [f"dropout {self.dropout}"] * (self.dropout > 0) + ["batch norm"] * self.batch_norm
        if between and not architecture.hidden:
            raise InvalidOption(
                f"{' and '.join(between)} follows hidden layers, and the head {self.head} has none",
                hint="leave it out, or take a head such as mlp:128,64",
            )
        if self.batch_norm and self.head_batch_size < SMALLEST_NORMED_BATCH:
            raise InvalidOption(
                f"expected --head-batch-size of at least {SMALLEST_NORMED_BATCH} with --batch-norm, "
                f"got {self.head_batch_size}",
                hint="a batch's own mean and deviation say nothing for so few rows",
            )
        if self.layers is not None:
            _check_layers(self.layers)

    def _check_steps_untouched(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        changed = [_option(name) for name in STEP_OPTIONS if getattr(self, name) != defaults[name]]
        if changed:
            raise InvalidOption(
                f"the head {self.head} is solved, not trained by steps: {', '.join(changed)} would do nothing",
                hint=f"leave out {', '.join(changed)}, or take linear or mlp:128,64",
            )

    @property
    def draws_views(self) -> bool:
        """Whether an epoch has one view of each train image that has several."""
        return (self.train_views or DEFAULT_TRAIN_VIEWS) == DRAW and not self.architecture.solved

    def for_views(self, views: int) -> HeadConfig:
        """The options on a cache with so many views of each train image: what was left to a default is filled in.

        Raises InvalidOption where `train_views` is said and there is one view.
        """
        if views == 1 and self.train_views is not None:
            raise InvalidOption(
                f"--train-views {self.train_views} says nothing: the cache has one view of each image, the plain one",
                hint="leave it out, or extract with --views 4",
            )
        if views == 1 or self.architecture.solved:
            return self
        return replace(self, train_views=self.train_views or DEFAULT_TRAIN_VIEWS)

    @property
    def architecture(self) -> Architecture:
        """`head`, parsed."""
        return parse_head(self.head)

    def to_json(self) -> dict[str, object]:
        """All fields as JSON values."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        values["target"] = list(self.target)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> HeadConfig:
        """The config that `to_json` described. Raises InvalidOption for fields that are none."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InvalidOption(f"unknown options of a head: {', '.join(sorted(unknown))}")
        layers = values.get("layers")
        known = {**values, "layers": tuple(layers) if isinstance(layers, list) else None}
        if isinstance(values.get("target"), list):
            known["target"] = tuple(values["target"])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class _Number:
    """What a numeric option may be."""

    kind: type[int] | type[float]
    holds: Callable[[float], bool]
    wanted: str

    def check(self, name: str, value: object) -> None:
        numeric = isinstance(value, int | float if self.kind is float else int) and not isinstance(value, bool)
        if not (numeric and isinstance(value, int | float) and math.isfinite(value) and self.holds(value)):
            raise InvalidOption(f"expected {_option(name)} to be {self.wanted}, got {value!r}")


_POSITIVE = _Number(kind=float, holds=lambda value: value > 0, wanted="a number above 0")
_NOT_NEGATIVE = _Number(kind=float, holds=lambda value: value >= 0, wanted="a number of at least 0")
_COUNT = _Number(kind=int, holds=lambda value: value >= 1, wanted="a whole number of at least 1")
_SEED = _Number(kind=int, holds=lambda value: 0 <= value <= LARGEST_SEED, wanted="a whole number from 0 to 2^32-1")

_NUMBERS: Mapping[str, _Number] = {
    "dropout": _Number(kind=float, holds=lambda value: 0 <= value < 1, wanted="at least 0 and below 1"),
    "mixup": _NOT_NEGATIVE,
    "noise": _NOT_NEGATIVE,
    "lr": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "l1": _NOT_NEGATIVE,
    "momentum": _Number(kind=float, holds=lambda value: 0 <= value < 1, wanted="at least 0 and below 1"),
    "label_smoothing": _Number(kind=float, holds=lambda value: 0 <= value < 1, wanted="at least 0 and below 1"),
    "head_batch_size": _COUNT,
    "max_epochs": _COUNT,
    "patience": _COUNT,
    "min_delta": _NOT_NEGATIVE,
    "val_fraction": _Number(kind=float, holds=lambda value: 0 < value < 1, wanted="above 0 and below 1"),
    "val_seed": _SEED,
    "seed": _SEED,
}

_NAMES: Mapping[str, tuple[str, ...]] = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine", "plateau"),
    "class_weights": ("none", "balanced"),
    "val_cut": ("stratified", "random"),
    "loss": ("mse", "l1", "huber"),
}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_layers(layers: tuple[str, ...]) -> None:
    if not layers or not all(isinstance(layer, str) and layer for layer in layers):
        raise InvalidOption(f"expected the names of one or more layers, got {layers!r}")
    if len(set(layers)) < len(layers):
        raise InvalidOption(f"expected each layer once, got {', '.join(layers)}")
