"""The small records that a training hands out and a run keeps. No torch here: the shelf of runs is read without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Score:
    """`accuracy`: a fraction from 0 to 1; `loss`: mean cross-entropy, natural logarithm."""

    accuracy: float
    loss: float

    def to_json(self) -> dict[str, float]:
        """Both values by name."""
        return {"accuracy": self.accuracy, "loss": self.loss}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How good a head is on one part, in more words than a Score. Everything but counts is a fraction from 0 to 1.

    `accuracy_interval`: 95 %, by bootstrap over the images. `top5`: None with 5 classes or fewer.
    `balanced_accuracy`: the mean recall of the classes there are. `macro_f1`: the mean F1 of the classes that are
    there or were said. `calibration_error`: expected, over 15 bins of confidence; `temperature`: what the logits have
    to be divided by to be calibrated on val, and `scaled_calibration_error` what is left of the error then.
    `recall`, `precision`, `images`: a value a class, in their order; None where there is nothing to divide by.
    `confusion`: a row a class, a column for what was said; None with more than 200 classes.
    """

    accuracy: float
    accuracy_interval: tuple[float, float]
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float
    temperature: float
    scaled_calibration_error: float
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    images: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metrics:
        """What `to_json` described. Raises TypeError or AttributeError for anything else."""
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        rows = values.get("confusion")
        confusion = None if rows is None else tuple(tuple(row) for row in rows)
        return cls(**{**values, **tuples, "confusion": confusion})


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished epoch, counted from 1. It is what a progress callback gets and what the history keeps.

    `train_loss`: mean loss of the batches as they were trained on, without any penalty: cross-entropy, with label
    smoothing and class weights where they were asked for; nan where there is none (knn).
    `seconds`: what this epoch took, val included.
    `candidate`: a head that is solved has no epochs. Each value it tried takes the place of one, and stands here
    in words (`C=0.1`).
    `lr`: the learning rate of the epoch; 0 where nothing is trained by steps.
    """

    epoch: int
    max_epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float
    candidate: str = ""
    lr: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a head says of one part, a row an image.

    `ids`: sample ids; `labels`: int64 (N,); `probabilities`: float32 (N, C), in the order of the classes.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class FeatureLayer:
    """One layer a head reads: `dim` values a row, stored as `dtype`; a value is stored x scale + offset."""

    name: str
    dim: int
    dtype: str
    scale: float
    offset: float

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored numbers of any type -> a float32 copy: what a head is given."""
        values = np.array(stored, dtype=np.float32)
        if (self.scale, self.offset) != (1.0, 0.0):
            values *= np.float32(self.scale)
            values += np.float32(self.offset)
        return values


@dataclass(frozen=True, kw_only=True)
class FeatureOrigin:
    """Where a head's features came from: the cache as it was found, and the spec that determines them.

    `spec`: the spec's canonical JSON; `layers`: those the head reads, in the order in which they stand side by side.
    `beside`: further caches of the same images, whose layers follow.
    `weights`: where the backbone's weights came from; None for pixels, and in a run that did not write it down.
    `images`: what names the set of images, a name or a path. `probe`: what the backbone gave for two probe images.
    """

    cache: str
    cache_name: str
    backbone: str
    fingerprint: str
    spec: str
    layers: tuple[FeatureLayer, ...]
    beside: tuple[FeatureOrigin, ...] = ()
    weights: str | None = None
    images: str | None = None
    probe: Mapping[str, Any] | None = None

    @property
    def origins(self) -> tuple[FeatureOrigin, ...]:
        """This cache and those beside it, in the order of their features."""
        return (self, *self.beside)

    @property
    def columns(self) -> tuple[FeatureLayer, ...]:
        """The layers of all caches, in the order in which they stand side by side."""
        return tuple(layer for origin in self.origins for layer in origin.layers)

    @property
    def feature_dim(self) -> int:
        """Width D of the head's input."""
        return sum(layer.dim for layer in self.columns)

    @property
    def views_told(self) -> str:
        """What of augmentation the head has seen, for people."""
        return Spec.from_json(self.spec).views_told

    @property
    def label(self) -> str:
        """Backbones and layers, for messages: `vgg16/avgpool`."""
        return " + ".join(f"{one.backbone}/{'+'.join(layer.name for layer in one.layers)}" for one in self.origins)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, the spec as an object."""
        return asdict(self) | {
            "spec": json.loads(self.spec),
            "layers": [asdict(layer) for layer in self.layers],
            "beside": [origin.to_json() for origin in self.beside],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureOrigin:
        """What `to_json` described. Raises KeyError or TypeError for anything else."""
        spec = json.dumps(values["spec"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        layers = tuple(FeatureLayer(**layer) for layer in values["layers"])
        # Runs from before several caches could be read say nothing of others.
        beside = tuple(cls.from_json(origin) for origin in values.get("beside", ()))
        return cls(**{**values, "spec": spec, "layers": layers, "beside": beside})


@dataclass(frozen=True, kw_only=True)
class Training:
    """What came out of a training, before and after it has a folder.

    `seconds`: reading the features and fitting; not imports, the test split or writing.
    `trainable`: numbers that were learned; 0 for knn, which only remembers.
    `images`: how many images each part has. `last`: val at the last epoch, as against `val`, at the best.
    Of a head that is solved, `epochs` counts the candidates, `best_epoch` is the number of the chosen one, and `last`
    is `val`. `threads`: torch's while it was trained by steps on the CPU, else None.
    """

    trainable: int
    frozen: int | None
    images: Mapping[str, int]
    epochs: int
    best_epoch: int
    interrupted: bool
    seconds: float
    val: Score
    last: Score
    test: Score | None
    device: str
    notes: tuple[str, ...] = field(default=())
    threads: int | None = None


Progress = Callable[[EpochRecord], None]
Report = Callable[[str], None]


def tell(report: Report | None, notes: Sequence[str]) -> None:
    """Say the sentences, if anybody listens."""
    if report is not None:
        for note in notes:
            report(note)
