"""Which augmented views of the train images an epoch has: all of them, or one that is drawn for each image.

Only train has augmented views; val and test are always evaluated on plain images.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from featcache.cache.spec import Spec

TrainViews = Literal["all", "draw"]
ALL: Final = "all"
DRAW: Final = "draw"
TRAIN_VIEWS: Final[tuple[TrainViews, ...]] = get_args(TrainViews)
# Used where no value is given.
DEFAULT_TRAIN_VIEWS: Final[TrainViews] = "all"

_SEEN = {ALL: ", all of them in every epoch", DRAW: ", one of them drawn for each image in every epoch"}


def describe_views(described: str, train_views: str | None) -> str:
    """Text for the user about the views a head was trained on.

    `described`: the views of the cache (Spec.views_description). `train_views`: "all", "draw" or None.
    """
    return described + _SEEN.get(train_views or "", "")


def views_notes(spec: Spec, train_views: str | None) -> tuple[str, ...]:
    """A note if train has augmented views. `train_views`: None for a head without epochs, which sees all of them."""
    if spec.views == 1:
        return ()
    return (
        f"train sees {describe_views(spec.views_description, train_views)}; val and test are evaluated on plain images",
    )
