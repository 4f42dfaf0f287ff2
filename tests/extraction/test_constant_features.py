"""Features that are the same for every image cause a warning: the layer or the weights are probably wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_backbone, write_images
from torch import nn

from featcache.backbones.network import Network
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract


class Dead(nn.Module):
    """A layer of twelve channels that depend on the image, and one of six that are constant."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.alive = nn.Conv2d(3, 12, 3)
        self.dead = nn.Conv2d(12, 6, 1)
        with torch.no_grad():
            self.dead.weight.zero_()
            assert self.dead.bias is not None
            self.dead.bias.fill_(value)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.dead(self.alive(images)).mean(dim=(2, 3))
        return features


def dead(value: float = 0.0, layers: tuple[str, ...] = ()) -> Network:
    return from_module(Dead(value), name="dead", transform=Transform(image_size=16), layers=layers)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures", train=5, test=2)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "the same features" in record.message]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_features_are_a_warning_with_layer_and_weights(
    value: float, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request(dataset=images, backbone=dead(value), precision="fp32", data_dir=tmp_path / "data")
    extract(request, Execution(batch_size=8, segment_rows=8))
    assert warnings(caplog) == [
        "all 21 images have the same features in layer output (module:dead): check the layer and the weights"
    ]


def test_a_layer_that_varies_is_not_named(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = dead(layers=("alive", "output"))
    extract(Request(dataset=images, backbone=network, precision="fp32", data_dir=tmp_path / "data"))
    (warning,) = warnings(caplog)
    assert "in layer output " in warning


def test_features_that_differ_are_no_warning(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extract(Request(dataset=images, backbone=tiny_backbone(), precision="fp32", data_dir=tmp_path / "data"))
    assert warnings(caplog) == []


def test_one_image_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = write_images(tmp_path / "pictures", train=1, test=0)
    request = Request(dataset=images, backbone=dead(), precision="fp32", limit=1, data_dir=tmp_path / "data")
    assert extract(request).computed == 1
    assert warnings(caplog) == []
