"""End to end: the backbone runs in every step, over the same rows in the same order as a cache would give them.

`NotebookForward` is how it is usually written: Pillow transforms image by image in a DataLoader, torchvision's network
as it comes, fp32, eager, channels first, frozen and in eval mode. `TunedForward` is the fair control: everything that
makes an extraction fast (decoding threads, precision, memory format, folded batch norms, compiled where the
extraction is), and still in every step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from featcache.backbones.loading import Plain
from featcache.backbones.transforms import Transform
from featcache.benchmark.training import Parts
from featcache.errors import HeadError
from featcache.extraction.pipeline import Pipeline
from featcache.heads.config import HeadConfig
from featcache.images.samples import UNLABELLED, Sample
from featcache.images.source import ImageSource
from featcache.rows.batches import Batch, epoch_order
from featcache.rows.cuts import cut_rows
from featcache.rows.target import class_target

Preset = Callable[[Image.Image], Tensor]  # one RGB image -> float32 (3, S, S)


class Forward(Protocol):
    """Images through the backbone, as often as they are asked for."""

    @property
    def device(self) -> torch.device:
        """Where the features come out."""
        ...

    @property
    def feature_dim(self) -> int:
        """Width D of a row."""
        ...

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """The features of `samples` in order, `batch_size` at a time (the last batch may be short): float32 (B, D)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """What the order of an epoch depends on. `row_bytes`: a row of the cache that this is compared with."""

    batch_size: int
    seed: int
    row_bytes: int

    def rows(self, count: int, epoch: int) -> list[int]:
        """The order of `count` rows in one epoch."""
        order = epoch_order(
            count, batch_size=self.batch_size, row_bytes=self.row_bytes, seed=self.seed, epoch=epoch
        ).tolist()
        return list(order)


class ImageEpochs:
    """Labelled images as epochs of features that are computed when they are asked for (`heads.batches.Epochs`).

    `seen` is told how many images have just been through the backbone.
    """

    # No dataclass: Lightning's Trainer would take it apart to move its fields to the device.
    def __init__(
        self, samples: Sequence[Sample], forward: Forward, ordering: Ordering, seen: Callable[[int], None]
    ) -> None:
        self.samples, self.forward, self.ordering, self._seen = samples, forward, ordering, seen

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self.forward.device

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, in the order of epoch `number`; every batch in memory of its own."""
        return self._batches([self.samples[row] for row in self.ordering.rows(len(self.samples), number)])

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, as they stand; every batch in memory of its own."""
        return self._batches(self.samples)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        labels, done = torch.tensor([sample.label for sample in samples], device=self.device), 0
        for features in self.forward.features(samples, self.ordering.batch_size):
            yield features, labels[done : done + len(features)]
            done += len(features)
            self._seen(len(features))


# --- as a notebook does it ---------------------------------------------------------------------------------


class NotebookForward:
    """Per-image transforms in a DataLoader, and the frozen network as it comes.

    `network`: float32 (B, 3, S, S) -> (B, D).
    """

    def __init__(self, source: ImageSource, network: nn.Module, preset: Preset, *, feature_dim: int) -> None:
        self.network = network
        self.feature_dim = feature_dim
        self._source, self._preset = source, preset

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """See Forward."""
        for images in DataLoader(_Pictures(self._source, samples, self._preset), batch_size=batch_size):
            with torch.no_grad():
                features: Tensor = self.network(images.to(self.device))
            yield features


class _Pictures(Dataset[Tensor]):
    """What ImageFolder would be: one image at a time, through the transform."""

    def __init__(self, source: ImageSource, samples: Sequence[Sample], preset: Preset) -> None:
        self._source, self._samples, self._preset = source, samples, preset

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> Tensor:
        payload = self._source.read(self._samples[row])
        image = Image.fromarray(payload) if isinstance(payload, np.ndarray) else Image.open(io.BytesIO(payload))
        return self._preset(image.convert("RGB"))


class NotebookNetwork(nn.Module):
    """Torchvision's network up to its first asked layer, flattened: what a notebook puts in front of its head."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.part = plain.part
        self._layer = plain.layers[0]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) -> (B, D)."""
        return self._layer.pooling.rows(self.part(images)[self._layer.name])


def notebook_preset(transform: Transform) -> Preset:
    """A transform in torchvision's classes."""
    side, filters = transform.image_size, transforms.InterpolationMode(transform.interpolation)
    sized = [transforms.Resize((side, side), filters)]
    if transform.resize == "crop":
        sized = [transforms.Resize(transform.resize_size or side, filters), transforms.CenterCrop(side)]
    preset: Preset = transforms.Compose(
        [*sized, transforms.ToTensor(), transforms.Normalize(transform.mean, transform.std)]
    )
    return preset


# --- with featcache's own speed ----------------------------------------------------------------------------


class TunedForward:
    """The pipeline of an extraction, run anew for every epoch."""

    def __init__(self, pipeline: Pipeline, *, device: torch.device) -> None:
        (backbone,) = pipeline.backbones
        (self._layer,) = backbone.program.spec.layers
        self.device = device
        self.feature_dim = self._layer.feature_dim
        self._pipeline = pipeline

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """See Forward. Raises ImageError for an image that cannot be used."""
        waiting = torch.empty(0, self.feature_dim)
        for block in self._pipeline.run(samples):
            if block.failures:
                raise block.failures[0].error
            found = [torch.from_numpy(rows.features[self._layer.name]) for rows in block.rows[0]]
            waiting = torch.cat([waiting, *found])
            # The pipeline's batches are those that suit the backbone; the head's are another matter.
            while len(waiting) >= batch_size:
                yield waiting[:batch_size].to(self.device)
                waiting = waiting[batch_size:]
        if len(waiting):
            yield waiting.to(self.device)


# --- which images ------------------------------------------------------------------------------------------


def cut_samples(chosen: Mapping[str, Sequence[Sample]], config: HeadConfig) -> dict[str, list[Sample]]:
    """The samples of train, val and test (absent where there are none), as `rows.cuts` cuts a cache of them.

    `chosen`: the samples of each split, in source order. Raises HeadError where train has no labelled image.
    """
    labelled = {split: [one for one in samples if one.label != UNLABELLED] for split, samples in chosen.items()}
    known = {split: samples for split, samples in labelled.items() if samples}
    if "train" not in known:
        raise HeadError("there are no labelled train images", hint="labels come from folders, one a class")
    if "val" not in known:
        train = known["train"]
        labels = np.array([one.label for one in train], np.int64)
        first, second = cut_rows(
            labels,
            class_target(map(str, range(int(labels.max()) + 1))),
            val_fraction=config.val_fraction,
            val_seed=config.val_seed,
            val_cut=config.val_cut,
        )
        known |= {"train": [train[row] for row in first], "val": [train[row] for row in second]}
    return known


def image_parts(
    samples: Mapping[str, Sequence[Sample]],
    forward: Forward,
    config: HeadConfig,
    *,
    classes: Sequence[str],
    stored: str,
    seen: Callable[[int], None] = lambda images: None,
) -> Parts:
    """Train, val and test end to end. `stored`: the dtype of the cache that this is compared with."""
    ordering = Ordering(
        batch_size=config.head_batch_size,
        seed=config.seed,
        row_bytes=forward.feature_dim * np.dtype(stored).itemsize,
    )

    def epochs(part: str) -> ImageEpochs:
        return ImageEpochs(samples[part], forward, ordering, seen)

    return Parts(
        train=epochs("train"),
        val=epochs("val"),
        test=epochs("test") if "test" in samples else None,
        feature_dim=forward.feature_dim,
        target=class_target(classes),
    )
