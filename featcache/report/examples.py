"""Examples of images: of the data, by target, and the worst mistakes of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.report.image_sets import ImageSet, Rows, worst_mistakes
from featcache.report.thumbnails import COLUMNS, Pixels, Thumbnails, pack_sheets
from featcache.rows.target import HeadTarget

MOST_EXAMPLES = 20
PICTURE_BYTES = 60_000
SIDE = 72
"""The size of an example on the page, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image of the data. `text`: its target. `style`: CSS that shows its tile of the sheet."""

    id: str
    text: str
    style: str


def target_text(target: HeadTarget, value: NDArray[np.generic]) -> str:
    """The target of one image as text: a class name, the names of its labels, or numbers."""
    if target.kind == "classes":
        return target.names[int(value)]
    if target.kind == "lists":
        return ", ".join(name for name, mark in zip(target.names, value.tolist(), strict=True) if mark > 0) or "none"
    numbers = [f"{number:,.4g}" for number in value.tolist()]
    if len(numbers) == 1:
        return numbers[0]
    return ", ".join(f"{name} {number}" for name, number in zip(target.names, numbers, strict=True))


def examples_of(image_set: ImageSet, pictures: list[Pixels | None]) -> tuple[list[Example], str]:
    """Images that show the data, evenly over the targets, and the sheet of their pictures as a data URL.

    Empty if no image has a picture.
    """
    chosen = [row for row in _spread(image_set) if pictures[row] is not None][:MOST_EXAMPLES]
    packed = pack_sheets([pictures[row] for row in chosen], PICTURE_BYTES)
    if not packed.sheets:
        return [], ""
    target, ids, targets = image_set.results[0].target, image_set.ids, image_set.targets
    examples = [
        Example(id=ids[row], text=target_text(target, targets[row]), style=_style(packed, place))
        for place, row in enumerate(chosen)
        if packed.tiles[place] >= 0
    ]
    return examples, packed.sheets[0]


def _style(packed: Thumbnails, place: int) -> str:
    down, across = divmod(int(packed.tiles[place]), COLUMNS)
    return f"background-size:{SIDE * COLUMNS}px auto;background-position:{-SIDE * across}px {-SIDE * down}px"


def _spread(image_set: ImageSet) -> list[int]:
    """All shown images in an order whose first ones have targets as different as possible."""
    targets = image_set.targets
    random = np.random.default_rng(0).permutation(len(targets))
    kind = image_set.results[0].target.kind
    if kind == "numbers":
        # Evenly over the values of the first column.
        order = np.argsort(targets[:, 0], kind="stable")
        some = order[np.linspace(0, len(order) - 1, min(MOST_EXAMPLES, len(order))).astype(np.int64)].tolist()
        return list(dict.fromkeys([*some, *random.tolist()]))
    keys = targets if kind == "classes" else np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)
    # First one image of each class, then a second one.
    seen: dict[int, int] = {}
    ranks = {}
    for row in random.tolist():
        key = int(keys[row])
        ranks[row] = (seen.get(key, 0), key)
        seen[key] = seen.get(key, 0) + 1
    return sorted(ranks, key=lambda row: ranks[row])


def most_wanted(image_set: ImageSet) -> Rows:
    """All positions of an image set: the worst mistakes of every run first, then the others in random order."""
    place = {row: position for position, row in enumerate(image_set.shown.tolist())}
    worst = [place[row] for one in image_set.results for row in worst_mistakes(one).tolist() if row in place]
    shuffled = np.random.default_rng(0).permutation(len(place)).tolist()
    return np.array(list(dict.fromkeys([*worst, *shuffled])), np.int64)
