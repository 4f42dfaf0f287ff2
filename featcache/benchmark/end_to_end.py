"""Training end to end: the backbone runs in every step, on the same rows in the same order as from a cache.

`NotebookForward` is the usual code: Pillow transforms image by image in a DataLoader, torchvision's unchanged network,
fp32, eager, channels first, frozen and in eval mode. `TunedForward` is the fair comparison: it runs the backbone in
every step too, with everything that makes an extraction fast (decoding threads, precision, memory format, folded batch
norms, and compilation if the extraction is compiled).
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
    """Computes the features of images, again in every call."""

    @property
    def device(self) -> torch.device:
        """The device of the features."""
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
    """What the order of an epoch depends on. `row_bytes`: bytes per row of the cache that this is compared with."""

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
    """Labelled images as epochs of features, computed when they are read (see `rows.batches.Epochs`).

    `seen` is called with the number of images after each batch.
    """

    # Not a dataclass, because Lightning's Trainer would move the fields of one to the device.
    def __init__(
        self, samples: Sequence[Sample], forward: Forward, ordering: Ordering, seen: Callable[[int], None]
    ) -> None:
        self.samples, self.forward, self.ordering, self._seen = samples, forward, ordering, seen

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.forward.device

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, in the order of epoch `number`; every batch in memory of its own."""
        return self._batches([self.samples[row] for row in self.ordering.rows(len(self.samples), number)])

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, in their order; every batch in memory of its own."""
        return self._batches(self.samples)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        labels, done = torch.tensor([sample.label for sample in samples], device=self.device), 0
        for features in self.forward.features(samples, self.ordering.batch_size):
            yield features, labels[done : done + len(features)]
            done += len(features)
            self._seen(len(features))


# --- the notebook's way ------------------------------------------------------------------------------------


class NotebookForward:
    """Transforms each image in a DataLoader, and runs the unchanged frozen network.

    `network`: float32 (B, 3, S, S) -> (B, D).
    """

    def __init__(self, source: ImageSource, network: nn.Module, preset: Preset, *, feature_dim: int) -> None:
        self.network = network
        self.feature_dim = feature_dim
        self._source, self._preset = source, preset

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """See Forward."""
        for images in DataLoader(_Pictures(self._source, samples, self._preset), batch_size=batch_size):
            with torch.no_grad():
                features: Tensor = self.network(images.to(self.device))
            yield features


class _Pictures(Dataset[Tensor]):
    """A dataset like ImageFolder: one image at a time, transformed."""

    def __init__(self, source: ImageSource, samples: Sequence[Sample], preset: Preset) -> None:
        self._source, self._samples, self._preset = source, samples, preset

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> Tensor:
        payload = self._source.read(self._samples[row])
        image = Image.fromarray(payload) if isinstance(payload, np.ndarray) else Image.open(io.BytesIO(payload))
        return self._preset(image.convert("RGB"))


class NotebookNetwork(nn.Module):
    """Torchvision's network up to its first requested layer, flattened, as a notebook uses it in front of a head."""

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self.part = plain.part
        self._layer = plain.layers[0]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) -> (B, D)."""
        return self._layer.pooling.rows(self.part(images)[self._layer.name])


def notebook_preset(transform: Transform) -> Preset:
    """The transform, built from torchvision's classes."""
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
    """The pipeline of an extraction, run again in every epoch."""

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
            # The pipeline's batches have the backbone's batch size; the head needs batches of its own size.
            while len(waiting) >= batch_size:
                yield waiting[:batch_size].to(self.device)
                waiting = waiting[batch_size:]
        if len(waiting):
            yield waiting.to(self.device)


# --- samples of each part ----------------------------------------------------------------------------------


def cut_samples(chosen: Mapping[str, Sequence[Sample]], config: HeadConfig) -> dict[str, list[Sample]]:
    """The samples of train, val and test (if there are any), cut as `rows.cuts` cuts a cache of them.

    `chosen`: the samples of each split, in source order. Raises HeadError if train has no labelled image.
    """
    labelled = {split: [one for one in samples if one.label != UNLABELLED] for split, samples in chosen.items()}
    known = {split: samples for split, samples in labelled.items() if samples}
    if "train" not in known:
        raise HeadError("there are no labelled train images", hint="labels come from folders, one per class")
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
    """Train, val and test as end-to-end epochs. `stored`: the dtype of the cache that this is compared with."""
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
