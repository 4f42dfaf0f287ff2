"""Which rows of a cache are read, what is learned from them, and how val is cut: the options of all that read rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from featcache.config import Option, check
from featcache.errors import InvalidOption
from featcache.rows.views import DEFAULT_TRAIN_VIEWS, TrainViews

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What rows hold, and which of them are val.

    Raises InvalidOption for a layer or target that stands twice, and for a group that is a target.
    """

    PANEL: ClassVar[str] = "What is learned from which rows"

    layers: Annotated[
        tuple[str, ...] | None,
        Option(
            help="A layer to read; several stand side by side, and BACKBONE/LAYER is that of one cache.",
            flags=("--layer",),
            metavar="<name>",
            default="the only one",
        ),
    ] = None
    target: Annotated[
        tuple[str, ...],
        Option(
            help="A target of the cache to learn: classes, several classes an image, or numbers; may be repeated for "
            "columns of numbers. Images without a value are left out.",
            metavar="<name>",
            default="label",
        ),
    ] = ("label",)
    group: Annotated[
        str | None,
        Option(
            help="A target of groups, such as patients: images of one group are never both in train and in val.",
            metavar="<name>",
            default="none",
        ),
    ] = None
    train_views: Annotated[
        TrainViews | None,
        Option(
            help="Of a cache with --views: all views of every train image in an epoch, or one of them, drawn anew for "
            "every image and epoch.",
            default=DEFAULT_TRAIN_VIEWS,
        ),
    ] = None
    val_fraction: Annotated[
        float,
        Option(
            help="Share of the train images that become val, where the set has no val split.",
            metavar="<fraction>",
            above=0,
            below=1,
        ),
    ] = 0.2
    val_seed: Annotated[
        int, Option(help="Which images --val-fraction takes.", metavar="<seed>", least=0, greatest=LARGEST_SEED)
    ] = 42
    val_cut: Annotated[
        Literal["stratified", "random"],
        Option(
            help="stratified: every class, or range of numbers, has its share in val. random: a permutation, as in the "
            "notebook."
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
