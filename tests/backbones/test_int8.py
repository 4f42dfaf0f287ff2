"""Convolutions in 8 bits: near to fp32, exact in any company, and bytes from one to the next where that can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featcache.backbones import load_backbone
from featcache.backbones.backbone import Backbone
from featcache.backbones.network import from_module
from featcache.backbones.transforms import Transform
from featcache.errors import InvalidOption
from featcache.extraction.devices import supported_precisions

pytestmark = pytest.mark.skipif(not supported_precisions("cpu")["int8"], reason="this CPU has no VNNI")


def pictures(side: int, count: int = 16) -> np.ndarray:
    """Smooth ones: noise alone would be nothing like an image."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.integers(0, 256, (count, 3, 4, 4)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()


def in_8_bits(backbone: Backbone, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in fp32 and in int8, of the default layer."""
    (layer,) = backbone.feature_dims
    ranges = backbone.observed(images)
    backbone.place("cpu", "fp32")
    exact = backbone.features(images)[layer].numpy().copy()
    backbone.place("cpu", "int8", ranges)
    return exact, backbone.features(images)[layer].numpy().copy()


def least_cosine(exact: np.ndarray, rounded: np.ndarray) -> float:
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    return float(((exact * rounded).sum(axis=1) / norms).min())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "squeezenet1_1", "googlenet"])
def test_features_in_8_bits_point_where_those_in_fp32_do(name: str) -> None:
    backbone = load_backbone(name, weights="random:0", image_size=64, weights_dir=Path())
    exact, rounded = in_8_bits(backbone, pictures(64))
    assert not np.array_equal(exact, rounded)
    assert least_cosine(exact, rounded) > 0.99


def test_a_row_is_the_same_in_any_company() -> None:
    backbone = load_backbone("resnet18", weights="random:0", image_size=48, weights_dir=Path())
    images = pictures(48)
    _, rows = in_8_bits(backbone, images)
    order = np.random.default_rng(1).permutation(16)
    assert np.array_equal(backbone.features(images[order])["avgpool"].numpy(), rows[order])
    assert np.array_equal(backbone.features(images[3:11])["avgpool"].numpy(), rows[3:11])


def test_back_in_fp32_nothing_is_left_of_it() -> None:
    backbone = load_backbone("resnet18", weights="random:0", image_size=48, weights_dir=Path())
    images = pictures(48)
    before = backbone.features(images)["avgpool"].numpy().copy()
    in_8_bits(backbone, images)
    backbone.place("cpu", "fp32")
    assert np.array_equal(backbone.features(images)["avgpool"].numpy(), before)


class Chain(nn.Module):
    """Values below zero, a pool with an overlap, one convolution called twice, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 40, 3, padding=1)
            self.shifted = nn.Conv2d(40, 40, 3, padding=1, bias=False)
            self.twice = nn.Conv2d(40, 40, (3, 1), padding=(1, 0), stride=(2, 1))
            self.pool = nn.MaxPool2d(3, stride=2)
            self.last = nn.Conv2d(40, 16, 3, dilation=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(self.shifted(torch.tanh(self.stem(images)) - 0.3))
        hidden = torch.relu(self.twice(torch.relu(self.twice(hidden))))
        result: torch.Tensor = self.last(hidden).flatten(1)
        return result


@pytest.mark.parametrize("layers", [(), ("flatten",)], ids=["untraced", "traced"])
def test_negative_values_strides_and_repeated_modules_are_right(layers: tuple[str, ...]) -> None:
    backbone = from_module(Chain(), name="chain", transform=Transform(image_size=40), layers=layers)
    exact, rounded = in_8_bits(backbone, pictures(40))
    assert least_cosine(exact, rounded) > 0.999
    assert np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()


def test_bytes_go_from_convolution_to_convolution_through_pools() -> None:
    backbone = load_backbone("vgg16", weights="random:0", image_size=32, weights_dir=Path())
    types: dict[str, torch.dtype] = {}
    backbone.place("cpu", "int8", backbone.observed(pictures(32)))
    part: nn.Module = vars(backbone)["_normalised"].part
    for path, module in part.named_modules():
        if path.startswith("features."):
            module.register_forward_hook(lambda _, inputs, output, path=path: types.update({path: output.dtype}))
    backbone.features(pictures(32, 8))
    # The stem computes in fp32, the last convolution hands on to the pool of the features.
    exact = {path for path, dtype in types.items() if dtype == torch.float32}
    assert exact == {"features.0", "features.0.inner", "features.1", "features.28", "features.30"}
    assert len(types) - len(exact) == 11 + 4


def test_what_has_no_convolutions_to_round_is_refused() -> None:
    pixels = load_backbone("pixels", image_size=8, weights_dir=Path())
    with pytest.raises(InvalidOption, match="pixels computes nothing in 8 bits"):
        pixels.observed(pictures(8, 8))


def test_a_convolution_without_a_range_is_refused() -> None:
    backbone = load_backbone("squeezenet1_1", weights="random:0", image_size=32, weights_dir=Path())
    with pytest.raises(InvalidOption, match=r"24 have none: features\.10\.expand1x1"):
        backbone.place("cpu", "int8", {})
