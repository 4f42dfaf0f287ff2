"""`pixels` is a backbone too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backbone_contract import BackboneContract, some_images

from featcache.backbones import load_backbone
from featcache.backbones.backbone import Backbone
from featcache.backbones.pixels import Pixels
from featcache.errors import InvalidOption


class TestPixelsContract(BackboneContract):
    @pytest.fixture
    def backbone(self, tmp_path: Path) -> Backbone:
        return load_backbone("pixels", image_size=32, weights_dir=tmp_path)


def test_bytes_are_stored_channels_first_and_scaled_to_plus_minus_one(tmp_path: Path) -> None:
    backbone = load_backbone("pixels", image_size=4, weights_dir=tmp_path)
    assert isinstance(backbone, Pixels)
    images = some_images(2, 4)
    stored = backbone.features(images)["pixels"].numpy()
    assert stored.dtype == np.uint8
    assert np.array_equal(stored.reshape(2, 3, 4, 4), images.transpose(0, 3, 1, 2))
    values = stored * backbone.scale + backbone.offset
    assert np.allclose(values, (images.transpose(0, 3, 1, 2).reshape(2, -1) / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 8, "normalize": "weights"},
        {"image_size": 8, "pool": "avg"},
        {"image_size": 8, "layers": ["x"]},
    ],
)
def test_what_pixels_cannot_do_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption):
        load_backbone("pixels", weights_dir=tmp_path, **options)  # type: ignore[arg-type]
