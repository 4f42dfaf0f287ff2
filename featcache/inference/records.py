"""The records of predictions and of searches: one per image, also as JSON. This module needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.display import Shown, Summary, Table
from featcache.rows.target import HeadTarget


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class by name, and its probability from 0 to 1."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class NearImage:
    """A cached image that is similar to an image.

    Attributes:
        id: Its id.
        split: Its split.
        label: Its true class, its classes joined with `;`, or its numbers; None where it is unlabelled.
        similarity: The cosine similarity of the features, from -1 to 1.
    """

    id: str
    split: str
    label: str | None
    similarity: float


@dataclass(frozen=True, kw_only=True, repr=False)
class ImagePrediction(Shown):
    """The prediction for one image.

    Attributes:
        path: The image.
        top: The most probable classes, the most probable first; empty where the head predicts numbers.
        labels: Where an image may have several classes: those above their thresholds, the most probable first; else
            None.
        values: Where the head predicts numbers: {column: number}; else None.
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
        """The probability of the most probable class."""
        return self.top[0].probability

    @property
    def text(self) -> str:
        """The prediction as one line: classes with probabilities, or numbers."""
        if self.values is not None:
            return ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        guesses = self.top[:1] if self.labels is None else self.labels
        return ", ".join(f"{one.label} {100 * one.probability:.1f} %" for one in guesses)

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the image and its prediction."""
        return Summary(title=self.path, facts=[("predicted", self.text)])

    def to_json(self) -> dict[str, Any]:
        """{"path", "label", "probability", "top"}, and "neighbours" where there are some.

        For several classes {"path", "labels", "top"}, for numbers {"path", "values"}.
        """
        record: dict[str, Any] = {"path": self.path}
        if self.values is not None:
            record["values"] = dict(self.values)
        elif self.labels is not None:
            record["labels"] = [asdict(guess) for guess in self.labels]
        else:
            record |= {"label": self.label, "probability": self.probability}
        if self.top:
            record["top"] = [asdict(guess) for guess in self.top]
        return record | ({"neighbours": [asdict(near) for near in self.neighbours]} if self.neighbours else {})


@dataclass(frozen=True, kw_only=True)
class Unread:
    """An image that could not be read, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predicted(Shown):
    """The predictions for all images of one call, in the order in which they were given.

    Attributes:
        run: The folder of the run.
        target: What the outputs are.
        images: A prediction for each image that was read.
        outputs: float32 (N, C), a row for each of `images`, with the columns `target.names`: probabilities of classes,
            or numbers in their units.
        unread: The images that could not be read.
        better_run: The folder of a run with a higher score on val, where "latest" was asked for and there is one.
    """

    run: str
    target: HeadTarget
    images: tuple[ImagePrediction, ...]
    outputs: NDArray[np.float32]
    unread: tuple[Unread, ...] = ()
    better_run: str | None = None

    def __iter__(self) -> Iterator[ImagePrediction]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the number of images, and the predictions for the first."""
        unread = [("could not be read", len(self.unread))] if self.unread else []
        return Summary(
            title=f"{len(self.images):,} image{'s' * (len(self.images) != 1)}",
            about=f"by {Path(self.run).name}",
            facts=[("outputs", self.outputs), *unread],
            tables=[Table(header=("image", "predicted"), rows=[(one.path, one.text) for one in self.images])],
        )

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache predict --json`."""
        record: dict[str, Any] = {"run": self.run, "better_run": self.better_run}
        record["images"] = [image.to_json() for image in self.images]
        return record | ({"skipped": [asdict(one) for one in self.unread]} if self.unread else {})


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchedImage(Shown):
    """An image whose most similar cached images were searched.

    Attributes:
        path: The image: its path, or its id in the cache.
        cached: Whether its features are in the cache, so that no backbone computed them.
        neighbours: The most similar cached images, the most similar first.
    """

    path: str
    cached: bool
    neighbours: tuple[NearImage, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Found(Shown):
    """The result of a search.

    Attributes:
        cache: The name of the cache.
        layers: The layers whose features were compared.
        rows: Number of images that were searched.
        images: The images that were searched for, in the order in which they were given.
    """

    cache: str
    layers: tuple[str, ...]
    rows: int
    images: tuple[SearchedImage, ...]

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache search --json`."""
        return {**asdict(self), "layers": list(self.layers), "images": [asdict(image) for image in self.images]}
