"""Which views of its train images a head sees in an epoch: all of them, or one that is drawn for each image.

Only train has augmented views; val and test are always judged on plain images.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from featcache.cache.spec import Spec

TrainViews = Literal["all", "draw"]
ALL: Final = "all"
DRAW: Final = "draw"
TRAIN_VIEWS: Final[tuple[TrainViews, ...]] = get_args(TrainViews)
# Where no value is given.
DEFAULT_TRAIN_VIEWS: Final[TrainViews] = "all"

_SEEN = {ALL: ", all of them in every epoch", DRAW: ", one of them drawn for each image in every epoch"}


def seen_views(described: str, train_views: str | None) -> str:
    """What a head has seen of augmentation, for people. `described`: which views there are (Spec.views_told)."""
    return described + _SEEN.get(train_views or "", "")


def views_notes(spec: Spec, train_views: str | None) -> tuple[str, ...]:
    """Notes where train has augmented views. `train_views`: None for a head without epochs, which sees all."""
    if spec.views == 1:
        return ()
    return (f"train sees {seen_views(spec.views_told, train_views)}; val and test are judged on plain images",)
