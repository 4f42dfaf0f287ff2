"""Options that choose layers, target and val images; shared by everything that reads rows of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from featcache.config import Option, check
from featcache.errors import InvalidOption
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, TrainViews

#: As the layers: every layer of the caches that are read.
ALL_LAYERS = ("all",)
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The layers and targets to read, and how val is split off.

    Raises InvalidOption for a layer or target that is given twice, and for a group that is also a target.
    """

    PANEL: ClassVar[str] = "What is learned from which rows"

    layers: Annotated[
        tuple[str, ...] | None,
        Option(
            help="A layer to read, or all. May be repeated: the features of several layers are read side by "
            "side; BACKBONE/LAYER is a layer of one cache.",
            flags=("--layer",),
            metavar="<name>",
            default="the only one",
        ),
    ] = None
    target: Annotated[
        tuple[str, ...],
        Option(
            help="The target to learn. Classes, several classes for one image, or numbers; may be repeated "
            "for columns of numbers. Images without a value are left out.",
            metavar="<name>",
            default="label",
        ),
    ] = ("label",)
    group: Annotated[
        str | None,
        Option(
            help="A column of groups: each in train or in val. Such as patients: no images of one group are both in "
            "train and in val.",
            metavar="<name>",
            default="none",
        ),
    ] = None
    train_views: Annotated[
        TrainViews | None,
        Option(
            help="For a cache with --views: all: an epoch has all views of every train image; draw: it has one view of "
            "each, drawn anew in every epoch.",
            default=DEFAULT_TRAIN_VIEWS,
            advanced=True,
        ),
    ] = None
    val_fraction: Annotated[
        float,
        Option(
            help="Share of the train images that become val, if the dataset has no val split.",
            metavar="<fraction>",
            above=0,
            below=1,
            advanced=True,
        ),
    ] = 0.2
    val_seed: Annotated[
        int,
        Option(
            help="Seed for choosing the val images.", metavar="<seed>", least=0, greatest=LARGEST_SEED, python_only=True
        ),
    ] = 42
    val_cut: Annotated[
        Literal["stratified", "random"],
        Option(
            help="stratified: every class, or range of numbers, has its share in val. random: a permutation, as in the "
            "notebook.",
            advanced=True,
        ),
    ] = "stratified"

    def __post_init__(self) -> None:
        check(self)
        _require_names("--layer", self.layers)
        _require_names("--target", self.target)
        if self.group in self.target:
            raise InvalidOption(
                f"{self.group} is a target and cannot be the --group too", hint="name another column, or leave it out"
            )


def _require_names(option: str, names: tuple[str, ...] | None) -> None:
    if names is not None and (not names or not all(names)):
        raise InvalidOption(f"expected {option} with one or more names, got {names!r}")
    if names is not None and len(set(names)) < len(names):
        raise InvalidOption(f"expected each {option} once, got {', '.join(names)}")
