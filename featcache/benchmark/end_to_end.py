"""Training with the backbone in every step, or from a cache: the same rows in the same order, the same Trainer.

`NotebookForward` is the usual code: Pillow transforms image by image in a DataLoader, torchvision's unchanged network,
fp32, eager, channels first, frozen and in eval mode. `TunedForward` is the fair comparison: it runs the backbone in
every step too, with everything that makes an extraction fast. `train` is the notebook's training: a LightningModule
with Lightning's Trainer, EarlyStopping and torchmetrics; it records every step.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from featcache.backbones.loading import Plain
from featcache.backbones.transforms import Transform
from featcache.cache.reader import FeatureCache
from featcache.errors import HeadError
from featcache.extraction.pipeline import Pipeline
from featcache.heads.config import HeadConfig
from featcache.heads.metrics import Outcome
from featcache.heads.records import EpochRecord
from featcache.images.samples import UNLABELLED, Sample
from featcache.images.source import ImageSource
from featcache.rows.batches import Batch, Epochs, StreamedBatches, epoch_order
from featcache.rows.cuts import cut_rows
from featcache.rows.target import HeadTarget, class_target
from featcache.training.by_trainer import train_module, trainer_for
from featcache.training.evaluation import evaluate
from featcache.training.finished import final_head
from featcache.training.lightning import HeadModule
from featcache.training.preparation import open_prepared, prepare

Preset = Callable[[Image.Image], Tensor]  # one RGB image -> float32 (3, S, S)


class Forward(Protocol):
    """Computes the features of images, again in every call; float32 (B, `feature_dim`) on `device`."""

    device: torch.device
    feature_dim: int

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """The features of `samples` in order, `batch_size` at a time (the last batch may be short)."""
        ...


class NotebookForward:
    """Transforms each image in a DataLoader, and runs the unchanged frozen network, (B, 3, S, S) -> (B, D)."""

    def __init__(self, source: ImageSource, network: nn.Module, preset: Preset, *, feature_dim: int) -> None:
        self.device = next(network.parameters()).device
        self.feature_dim = feature_dim
        self._network, self._source, self._preset = network, source, preset

    def features(self, samples: Sequence[Sample], batch_size: int) -> Iterator[Tensor]:
        """See Forward."""
        for images in DataLoader(_Pictures(self._source, samples, self._preset), batch_size=batch_size):
            with torch.no_grad():
                features: Tensor = self._network(images.to(self.device))
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


class TunedForward:
    """The pipeline of an extraction, run again in every epoch."""

    def __init__(self, pipeline: Pipeline, *, device: torch.device) -> None:
        (backbone,) = pipeline.backbones
        (self._layer,) = backbone.program.spec.layers
        self.device, self.feature_dim, self._pipeline = device, self._layer.feature_dim, pipeline

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


# --- rows --------------------------------------------------------------------------------------------------


class ImageEpochs:
    """Labelled images as epochs of features, computed when they are read (see `rows.batches.Epochs`).

    Args:
        samples: The images.
        forward: Computes the features.
        config: Its batch size and seed give the order of an epoch.
        row_bytes: Bytes per row of the cache that this is compared with, on which the order depends too.
        seen: Called with the number of images after each batch.
    """

    # Not a dataclass, because Lightning's Trainer would move the fields of one to the device.
    def __init__(
        self,
        samples: Sequence[Sample],
        forward: Forward,
        config: HeadConfig,
        row_bytes: int,
        seen: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.device = forward.device
        self._samples, self._forward, self._batch_size, self._seen = samples, forward, config.head_batch_size, seen
        self._order = {"batch_size": config.head_batch_size, "row_bytes": row_bytes, "seed": config.seed}

    def epoch(self, number: int, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, in the order of epoch `number`; every batch in memory of its own."""
        order = epoch_order(len(self._samples), epoch=number, **self._order).tolist()
        return self._batches([self._samples[row] for row in order])

    def in_order(self, *, reuse: bool = False) -> Iterator[Batch]:
        """All images once, in their order; every batch in memory of its own."""
        return self._batches(self._samples)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        labels, done = torch.tensor([sample.label for sample in samples], device=self.device), 0
        for features in self._forward.features(samples, self._batch_size):
            yield features, labels[done : done + len(features)]
            done += len(features)
            self._seen(len(features))


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The data of a training: train, val and perhaps test, the number of values of a row, and what is predicted."""

    train: Epochs
    val: Epochs
    test: Epochs | None
    feature_dim: int
    target: HeadTarget


def parts_of_cache(cache: FeatureCache, config: HeadConfig, device: torch.device) -> Parts:
    """The data of a training from a cache, cut and opened as in `fit_head`."""
    prepared = prepare(cache, config, device=device)
    train, val = open_prepared(prepared, config)
    rows = prepared.rows.get("test")
    test = None if rows is None else StreamedBatches(rows, batch_size=config.head_batch_size, seed=0, device=device)
    return Parts(train=train, val=val, test=test, feature_dim=train.feature_dim, target=prepared.target)


# --- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The result of a training.

    `history`: each epoch. `step_losses`: float32 (steps of all epochs,), each before the update. `val`, `test`: the
    best epoch's outputs. `test_s`: seconds to evaluate test once.
    """

    history: tuple[EpochRecord, ...]
    step_losses: NDArray[np.float32]
    val: Outcome
    test: Outcome | None
    test_s: float

    @property
    def outcomes(self) -> list[Outcome]:
        """The outputs on val, and on test if there is one."""
        return [self.val] if self.test is None else [self.val, self.test]


def train(parts: Parts, config: HeadConfig) -> Trained:
    """Train a head for all its epochs, restore the best one, and record every step. Features are not standardised.

    Raises KeyboardInterrupt after Ctrl-C, because half a measurement is useless.
    """
    device, target = parts.train.device, parts.target
    module, steps = HeadModule(config, target, parts.feature_dim), _StepLosses()
    trial = train_module(module, parts.train, parts.val, trainer_for(config, device, steps))
    if trial.interrupted:
        raise KeyboardInterrupt
    head = final_head(trial, module.scaling, target, parts.feature_dim).to(device)
    val = evaluate(head, parts.val, target)
    began = time.perf_counter()
    test = None if parts.test is None else evaluate(head, parts.test, target)
    return Trained(
        history=tuple(trial.history),
        step_losses=np.asarray(steps.losses, np.float32),
        val=val,
        test=test,
        test_s=time.perf_counter() - began,
    )


class _StepLosses(Callback):
    """Records the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
