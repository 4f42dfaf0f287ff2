"""Small images in a folder and a fast backbone, for the tests of extraction."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module

CLASSES = ("cat", "dog", "eel")


class TinyNetwork(nn.Module):
    """Two convolutions and a mean: 12 features that depend on every pixel."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Narrower layers would stay in fp32, whatever the precision.
            self.first = nn.Conv2d(3, 40, 3)
            self.second = nn.Conv2d(40, 12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(images))
        return torch.relu(self.second(hidden)).mean(dim=(2, 3))


def tiny_backbone(seed: int = 0, image_size: int = 16, name: str = "tiny") -> Network:
    return from_module(TinyNetwork(seed), name=name, transform=Transform(image_size=image_size))


#: A forward pass: images (N, S, S, 3) -> {layer: (N, D)}.
Forward = Callable[[np.ndarray | torch.Tensor], dict[str, torch.Tensor]]


def every_forward(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Forward, np.ndarray | torch.Tensor], object]
) -> None:
    """Replace a program's forward pass by `replacement(forward, images)`; `forward` is the original one."""
    original = Program.features

    def features(program: Program, images: np.ndarray | torch.Tensor) -> object:
        return replacement(lambda batch: original(program, batch), images)

    monkeypatch.setattr(Program, "features", features)


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every forward pass from now on."""
    sizes: list[int] = []

    def count(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        sizes.append(len(images))
        return forward(images)

    every_forward(monkeypatch, count)
    return sizes


def random_squeezenet() -> dict[str, torch.Tensor]:
    """The tensors of torchvision's squeezenet1_1, drawn with seed 0."""
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(squeezenet1_1(weights=None).state_dict())


def jpeg(seed: int, side: int = 20) -> bytes:
    """An encoded image, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_images(root: Path, train: int = 10, test: int = 4) -> Path:
    """`train` and `test` images per class, all different: `split/class/NN.jpg`."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / f"{number:02d}.jpg").write_bytes(jpeg(seed))
                seed += 1
    return root
