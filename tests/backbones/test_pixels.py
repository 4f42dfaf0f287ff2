"""The backbone `pixels`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbone_contract import BackboneContract, some_images

from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.errors import InvalidOption


class TestPixelsContract(BackboneContract):
    @pytest.fixture
    def network(self, tmp_path: Path) -> Network:
        return load_backbone("pixels", image_size=32, data_dir=tmp_path)


def test_bytes_are_stored_channels_first_and_scaled_to_plus_minus_one(tmp_path: Path) -> None:
    network = load_backbone("pixels", image_size=4, data_dir=tmp_path)
    images = some_images(2, 4)
    stored = network.on().features(images)["pixels"].numpy()
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.reshape(2, 3, 4, 4), images.transpose(0, 3, 1, 2))
    assert network.spec.scaling is not None
    scale, offset = network.spec.scaling
    values = stored * scale + offset
    assert np.allclose(values, (images.transpose(0, 3, 1, 2).reshape(2, -1) / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 8, "normalize": "weights"},
        {"image_size": 8, "pool": "avg"},
        {"image_size": 8, "layers": ("x",)},
        {"image_size": 8, "weights": "random"},
    ],
)
def test_what_pixels_cannot_do_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption):
        load_backbone("pixels", data_dir=tmp_path, **options)
