"""Measures the time to resize and to augment an image: `python benchmarks/preprocessing.py [--device cuda]`.

Compares Pillow, image by image as in the decoding threads, with the matrix products of `backbones.resampling` on
batches in device memory; and measures a view of `backbones.augmentation`. The images are noise, because the time does
not depend on the content. On a CPU processor time is measured, because both share its cores with the forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import typer
from machine import write

from featcache.backbones.augmentation import Augmentation
from featcache.backbones.resampling import Resampler
from featcache.backbones.transforms import Interpolation, Transform

_SIZES = ((32, 32), (375, 500), (480, 640))


def milliseconds(work: Callable[[], object], images: int, clock: Callable[[], float], rounds: int = 5) -> float:
    """Milliseconds per image: the median of `rounds`, after one round that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        began = clock()
        work()
        times.append(clock() - began)
    return round(1000 * statistics.median(times) / images, 4)


def measure(height: int, width: int, side: int, interpolation: Interpolation, device: str) -> dict[str, Any]:
    """Measure one size of images and one size of network."""
    count = 64 if height * width < 10_000 else 8
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    transform = Transform(image_size=side, interpolation=interpolation)
    resampler = Resampler(transform=transform, device=torch.device(device))
    there = torch.from_numpy(images).to(device)

    def on_device() -> None:
        resampler.resize(there)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    clock = time.process_time if device == "cpu" else time.perf_counter
    assert np.array_equal(resampler.resize(there).cpu().numpy()[0], transform.resize_image(images[0]))
    return {
        "image": [height, width],
        "side": side,
        "interpolation": interpolation,
        "pillow_ms": milliseconds(
            lambda: [transform.resize_image(image) for image in images], count, time.process_time
        ),
        "matrices_ms": milliseconds(on_device, count, clock),
    }


def view(height: int, width: int) -> dict[str, Any]:
    """Measure one augmented view, without its resize."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    augmentation = Augmentation()

    def work() -> None:
        for number in range(1, 21):
            augmentation.view(image, digest=bytes(32), number=number, seed=0)

    return {"image": [height, width], "view_ms": milliseconds(work, 20, time.process_time)}


def main(device: str = "cpu") -> None:
    """Measure, and write results/preprocessing.json."""
    interpolations: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    results = {
        "device": device,
        "resizing": [
            measure(*size, side, interpolation, device)
            for size in _SIZES
            for side in (224, 299)
            for interpolation in interpolations
        ],
        "views": [view(*size) for size in _SIZES],
    }
    print(write("preprocessing", results).read_text())


if __name__ == "__main__":
    typer.run(main)
