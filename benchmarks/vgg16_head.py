"""The notebook's head on VGG16, by featcache and by a bare loop: `python benchmarks/vgg16_head.py ../shared`.

Both train on the same rows of the same cache (`--images` of CIFAR-10 per split), choose the epoch by the loss on the
same val images, and are evaluated on the same test images, with the same seeds. The bare loop is plain PyTorch: Linear
layers, torch.optim.Adam, shuffled batches of 64, early stopping. Speed is not measured: other work may run beside it.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from command import run
from machine import write
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.cache import FeatureCache
from featcache.notebook.recipes import recipe
from featcache.runs.fit import fit_head
from featcache.runs.run import Run

BATCH, PATIENCE, MIN_DELTA, MOST_EPOCHS = 64, 5, 0.001, 50


def bare_accuracy(parts: dict[str, tuple[Tensor, Tensor]], seed: int) -> tuple[float, int]:
    """Test accuracy of the notebook's head trained by a plain loop, and the number of epochs."""
    torch.manual_seed(seed)
    features, labels = parts["train"]
    network = nn.Sequential(
        nn.Linear(features.shape[1], 128), nn.LeakyReLU(), nn.Linear(128, 64), nn.LeakyReLU(), nn.Linear(64, 10)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    best, best_state, waited, epoch = float("inf"), copy.deepcopy(network.state_dict()), 0, 0
    while epoch < MOST_EPOCHS and waited < PATIENCE:
        epoch += 1
        for chosen in torch.split(torch.randperm(len(features)), BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(features[chosen].float()), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.inference_mode():
            loss = F.cross_entropy(network(parts["val"][0].float()), parts["val"][1]).item()
        waited = 0 if loss < best - MIN_DELTA else waited + 1
        if loss < best:
            best, best_state = loss, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    with torch.inference_mode():
        right = network(parts["test"][0].float()).argmax(1) == parts["test"][1]
    return right.float().mean().item(), epoch


def parts_of(cache: FeatureCache, trained: Run) -> dict[str, tuple[Tensor, Tensor]]:
    """Features float16 (N, 25088) and labels int64 (N,) of the parts that a run was trained and evaluated on."""
    train, val = cache["train"], set(trained.predictions("val").ids)
    is_val = np.array([name in val for name in train.ids])
    rows = {"train": ("train", np.flatnonzero(~is_val)), "val": ("train", np.flatnonzero(is_val))}
    rows["test"] = ("test", np.arange(len(cache["test"])))
    return {
        part: (
            torch.from_numpy(np.asarray(cache[split].features[:]))[chosen],
            torch.from_numpy(np.asarray(cache[split].labels))[chosen],
        )
        for part, (split, chosen) in rows.items()
    }


def main(shared: Path, images: int = 2000, seeds: int = 3, data_dir: Path | None = None) -> None:
    """Extract, train both ways with several seeds, and write results/vgg16_head.json."""
    shared = shared.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        folder = data_dir or Path(scratch) / "data"
        weights = shared / "weights" / "vgg16_imagenet_features.safetensors"
        words = ["-b", "vgg16", "-d", str(shared / "data" / "cifar10-images.zip"), "--limit", str(images)]
        extracted = run(["extract", *words, "--weights", str(weights), "--data-dir", str(folder)])
        with FeatureCache.open(extracted["cache"]) as cache:
            runs = [
                fit_head(cache, replace(recipe("vgg16").head, seed=seed), runs_dir=Path(scratch) / "runs")
                for seed in range(seeds)
            ]
            parts = parts_of(cache, runs[0])
        bare = [bare_accuracy(parts, seed) for seed in range(seeds)]
    ours = [one.training.test.value for one in runs if one.training.test is not None]
    result: dict[str, Any] = {
        "images": {name: len(labels) for name, (_, labels) in parts.items()},
        "featcache": {
            "test_accuracy": [round(one, 4) for one in ours],
            "epochs": [one.training.epochs for one in runs],
        },
        "bare": {"test_accuracy": [round(one, 4) for one, _ in bare], "epochs": [epochs for _, epochs in bare]},
        "difference_of_means": round(statistics.mean(ours) - statistics.mean(one for one, _ in bare), 4),
    }
    print(write("vgg16_head", result).read_text())


if __name__ == "__main__":
    typer.run(main)
