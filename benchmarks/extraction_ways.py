"""Four ways to compute the same features of the same images: featcache's, and three for comparison."""

from __future__ import annotations

import io
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

from featcache.backbones.loading import plain
from featcache.backbones.options import BackboneOptions
from featcache.backbones.program import Program
from featcache.backbones.transforms import Transform
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.run import Execution, extract
from featcache.images.samples import Sample
from featcache.images.source import ImageSource

BATCH = 32
WEIGHTS = {"vgg16": "vgg16_imagenet_features.safetensors", "inception_v3": "inception_v3_features.safetensors"}


def network_of(name: str, weights: str, image_size: int | None = None) -> nn.Module:
    """The frozen network as the notebook builds it: torchvision's, without its classifier.

    float32 (N, 3, S, S) -> (N, D).
    """
    options = BackboneOptions(backbone=name, weights=weights, image_size=image_size)
    state = plain(options, weights_dir=Path(weights).parent).part.state_dict()
    network = models.get_model(name, weights=None, **_NO_EXTRAS.get(name, {}))
    classifier = next(part for part in ("classifier", "fc", "heads", "head") if hasattr(network, part))
    setattr(network, classifier, nn.Identity())
    found = {key.removeprefix("root.network."): value for key, value in state.items()}
    missing = network.load_state_dict(found, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


# The auxiliary classifier is for training only; the transform normalises already.
_NO_EXTRAS: dict[str, dict[str, Any]] = {
    "inception_v3": {"init_weights": False, "aux_logits": False, "transform_input": False}
}


def _read(source: ImageSource, sample: Sample) -> Image.Image:
    payload = source.read(sample)
    assert isinstance(payload, bytes)
    return Image.open(io.BytesIO(payload)).convert("RGB")


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    """A dataset like ImageFolder: one image at a time, with the notebook's transform."""

    def __init__(self, source: ImageSource, samples: Sequence[Sample], transform: Transform) -> None:
        side = transform.image_size
        self.source, self.samples = source, samples
        self.transform = transforms.Compose(
            [
                transforms.Resize((side, side)),
                transforms.ToTensor(),
                transforms.Normalize(transform.mean, transform.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(_read(self.source, self.samples[row])), self.samples[row].label


def notebook(network: nn.Module, source: ImageSource, samples: Sequence[Sample], transform: Transform) -> float:
    """Images per second of the notebook's loop: Pillow and ToTensor per image, a DataLoader, eager fp32 in NCHW."""
    pictures = _Pictures(source, samples, transform)
    began = time.perf_counter()
    with torch.no_grad():
        for images, _ in DataLoader(pictures, batch_size=64):
            network(images)
    return len(samples) / (time.perf_counter() - began)


class Plain:
    """A carefully written, fast script in plain PyTorch.

    Two threads prefetch decoded and resized images (Pillow releases the GIL). Batches are uint8 in channels-last.
    Normalisation and network are one graph, compiled with frozen weights, under bf16 autocast, in inference mode. Rows
    are written into one float16 array. The script checks nothing, cannot resume, and stores nothing.
    """

    def __init__(self, network: nn.Module, transform: Transform, precision: str) -> None:
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (transform.mean, transform.std))
        network = network.to(memory_format=torch.channels_last)
        self.side = transform.image_size

        def rows(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                result: torch.Tensor = network((images.to(torch.float32) / 255 - mean) / std)
                return result.to(torch.float16)

        self.program = torch.compile(rows, dynamic=False, options={"freezing": True})
        self._forward(np.zeros((BATCH, self.side, self.side, 3), np.uint8))

    def _forward(self, images: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = self.program(torch.from_numpy(images).permute(0, 3, 1, 2))
            return result

    def run(self, source: ImageSource, samples: Sequence[Sample]) -> float:
        """Images per second, without the compilation."""

        def decode_batch(start: int) -> np.ndarray:
            some = [_read(source, sample) for sample in samples[start : start + BATCH]]
            return np.stack([np.asarray(one.resize((self.side, self.side), Image.Resampling.BILINEAR)) for one in some])

        starts = range(0, len(samples) - len(samples) % BATCH, BATCH)
        features: np.ndarray | None = None
        began = time.perf_counter()
        for start, images in zip(starts, _ahead(decode_batch, starts), strict=True):
            rows = self._forward(images).numpy()
            if features is None:
                features = np.empty((starts.stop, rows.shape[1]), np.float16)
            features[start : start + BATCH] = rows
        return starts.stop / (time.perf_counter() - began)


def _ahead(work: Any, starts: Sequence[int]) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(2) as pool:
        pending = deque(pool.submit(work, start) for start in starts[:3])
        for start in [*starts[3:], None, None, None][: len(starts)]:
            yield pending.popleft().result()
            if start is not None:
                pending.append(pool.submit(work, start))


def bare(program: Program, batch: np.ndarray, rounds: int = 3) -> float:
    """Images per second of a featcache program on one batch in memory: the median of rounds."""
    program.features(batch)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        program.features(batch)
        times.append(time.perf_counter() - began)
    return len(batch) / statistics.median(times)


def featcache(request: Request) -> Extraction:
    """Run an extraction on the CPU."""
    return extract(request, Execution(device="cpu"))
