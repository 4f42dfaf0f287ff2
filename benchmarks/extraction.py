"""Extraction against the forward pass alone and the notebook's loop: `python benchmarks/extraction.py ../shared`.

All three see the same real images and weights in one process and take turns; what counts are the ratios. The
notebook's loop is written as the notebook wrote it: Pillow resize and ToTensor per image, a DataLoader, eager fp32.
The bare forward pass is featcache's own network on one batch that stays in memory, over and over.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from machine import write
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from featcache.backbones import load_backbone
from featcache.backbones.backbone import Backbone
from featcache.backbones.weights import resolve
from featcache.extraction.devices import resolve_precision
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.images import open_source
from featcache.images.sources import ImageSource, Sample

_BATCH = 32
_WEIGHTS = {"vgg16": "vgg16_imagenet_features.safetensors", "inception_v3": "inception_v3_features.safetensors"}


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    """What ImageFolder would be: one image at a time, through the notebook's transform."""

    def __init__(self, source: ImageSource, samples: list[Sample], backbone: Backbone) -> None:
        side, mean, std = backbone.transform.image_size, backbone.transform.mean, backbone.transform.std
        self.source, self.samples = source, samples
        self.transform = transforms.Compose(
            [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        payload = self.source.read(self.samples[row])
        assert isinstance(payload, bytes)
        return self.transform(Image.open(io.BytesIO(payload)).convert("RGB")), self.samples[row].label


def notebook(name: str, weights: Path) -> nn.Module:
    """The frozen network as the notebook builds it: torchvision's, cut before its classifier."""
    tensors = resolve(name, str(weights), weights_dir=weights.parent).tensors
    if name == "vgg16":
        network: Any = models.vgg16(weights=None)
        network.classifier = nn.Identity()
    else:
        network = models.inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False)
        network.fc = nn.Identity()
    network.load_state_dict(tensors, strict=False)
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def looped(network: nn.Module, pictures: _Pictures) -> float:
    """Images a second of the notebook's loop."""
    began = time.perf_counter()
    with torch.no_grad():
        for images, _ in DataLoader(pictures, batch_size=64):
            network(images)
    return len(pictures) / (time.perf_counter() - began)


def bare(backbone: Backbone, batch: np.ndarray, rounds: int) -> float:
    """Images a second of the forward pass alone."""
    backbone.features(batch)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        backbone.features(batch)
        times.append(time.perf_counter() - began)
    return len(batch) / statistics.median(times)


def measured(name: str, shared: Path, images: int, rounds: int) -> dict[str, Any]:
    """One network: `rounds` turns of all three, medians and the ratios turn by turn."""
    archive, weights = shared / "data" / "cifar10-images.zip", shared / "weights" / _WEIGHTS[name]
    precision = resolve_precision("auto", "cpu")
    backbone = load_backbone(name, weights=str(weights), weights_dir=weights.parent)
    backbone.place("cpu", precision)
    source = open_source(archive, datasets_dir=shared)
    samples = list(source.samples("test"))[:images]
    pictures = _Pictures(source, samples[: max(32, images // 4)], backbone)
    batch = next(_batches(source, samples, backbone))
    network = notebook(name, weights)
    turns: list[dict[str, Any]] = []
    for turn in range(rounds):
        alone = bare(backbone, batch, 3)
        with tempfile.TemporaryDirectory() as scratch:
            request = Request(
                dataset=archive, backbone=name, weights=str(weights), splits=("test",), limit=images,
                precision=precision, data_dir=Path(scratch),
            )  # fmt: skip
            ours = extract(request, Execution(batch_size=_BATCH, device="cpu"))
        again = bare(backbone, batch, 3)
        loop = looped(network, pictures)
        assert ours.images_per_s is not None
        turns.append(
            {
                "images_per_s": ours.images_per_s,
                "whole_images_per_s": images / ours.seconds,
                "bare_images_per_s": (alone + again) / 2,
                "notebook_images_per_s": loop,
                "shares": ours.shares,
                "drift": ours.drift,
            }
        )
        print(name, turn, turns[-1], flush=True)
    source.close()
    ratios = {
        "of_bare": [turn["images_per_s"] / turn["bare_images_per_s"] for turn in turns],
        "over_notebook": [turn["images_per_s"] / turn["notebook_images_per_s"] for turn in turns],
        "whole_over_notebook": [turn["whole_images_per_s"] / turn["notebook_images_per_s"] for turn in turns],
    }
    return {
        "images": images,
        "precision": precision,
        "turns": turns,
        "ratios": {key: round(statistics.median(values), 3) for key, values in ratios.items()},
    }


def _batches(source: ImageSource, samples: list[Sample], backbone: Backbone) -> Iterator[np.ndarray]:
    from featcache.images.decoding import decode

    for start in range(0, len(samples), _BATCH):
        some = samples[start : start + _BATCH]
        yield np.stack([backbone.resize(decode(source.read(sample), sample.id)) for sample in some])


def main(shared: Path, images: int = 256, rounds: int = 2, only: list[str] | None = None) -> None:
    """Measure VGG16 at 224 and Inception v3 at 299 on CIFAR-10's JPEGs, and write results/extraction.json."""
    torch.set_num_threads(os.cpu_count() or 1)
    load = os.getloadavg()
    results = {name: measured(name, shared.resolve(), images, rounds) for name in only or list(_WEIGHTS)}
    print(write("extraction", {"load_before": load, **results}).read_text())


if __name__ == "__main__":
    typer.run(main)
