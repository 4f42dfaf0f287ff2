"""What a prediction says: one record an image, as JSON and as a table's rows. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.rows.target import HeadTarget


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class by name, and its probability from 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class NearImage:
    """A cached train image: its id, what is right for it, and the cosine of the angle between the features.

    `label`: its class, its classes with `;` between them, or its numbers; None for an unlabelled one.
    """

    id: str
    label: str | None
    similarity: float


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """What a head says of one image.

    Attributes:
        path: The image.
        top: The first few classes, the most probable first; none where the head gives numbers.
        labels: Where an image may have several classes: those above their thresholds, the most probable first; else
            None.
        values: Where the head gives numbers: each by the name of its column; else None.
        neighbours: The most similar train images.
    """

    path: str
    top: tuple[Guess, ...] = ()
    labels: tuple[Guess, ...] | None = None
    values: Mapping[str, float] | None = None
    neighbours: tuple[NearImage, ...] = ()

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top[0].label

    @property
    def probability(self) -> float:
        """That of the most probable class."""
        return self.top[0].probability

    def to_json(self) -> dict[str, Any]:
        """{"path", "label", "probability", "top"}, and "neighbours" where they were asked for.

        For several classes {"path", "labels", "top"}, for numbers {"path", "values"}.
        """
        said: dict[str, Any] = {"path": self.path}
        if self.values is not None:
            said["values"] = dict(self.values)
        elif self.labels is not None:
            said["labels"] = [asdict(guess) for guess in self.labels]
        else:
            said |= {"label": self.label, "probability": self.probability}
        if self.top:
            said["top"] = [asdict(guess) for guess in self.top]
        return said | ({"neighbours": [asdict(near) for near in self.neighbours]} if self.neighbours else {})


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An image that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """All images of one call, in the order in which they were given.

    `outputs`: float32 (N, C), a row for each of `images`, in the order of `target.names`: probabilities of classes, or
    numbers in their units.
    """

    run: str
    target: HeadTarget
    images: tuple[ImagePrediction, ...]
    outputs: NDArray[np.float32]
    unread: tuple[Unread, ...] = ()

    def __iter__(self) -> Iterator[ImagePrediction]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache predict --json`."""
        said = {"run": self.run, "images": [image.to_json() for image in self.images]}
        return said | ({"skipped": [asdict(one) for one in self.unread]} if self.unread else {})
