"""What every backbone must do, whatever computes its features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.backbones.backbone import Backbone


def some_images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """(count, side, side, 3) uint8, all different."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


class BackboneContract:
    """Subclass it and give the fixture `backbone`."""

    @pytest.fixture
    def backbone(self) -> Backbone:
        raise NotImplementedError

    def test_gives_one_row_per_image_of_the_width_it_declares(self, backbone: Backbone) -> None:
        features = backbone.features(some_images(2, backbone.transform.image_size))
        assert {name: tuple(rows.shape) for name, rows in features.items()} == {
            layer.name: (2, layer.feature_dim) for layer in backbone.layers
        }

    def test_is_deterministic_and_sees_the_image(self, backbone: Backbone) -> None:
        images = some_images(2, backbone.transform.image_size)
        first, again = backbone.features(images), backbone.features(images)
        for name, rows in first.items():
            assert np.array_equal(rows.numpy(), again[name].numpy())
            assert not np.array_equal(rows[0].numpy(), rows[1].numpy())

    def test_takes_images_that_are_on_the_device_already(self, backbone: Backbone) -> None:
        images = some_images(3, backbone.transform.image_size)
        there = backbone.features(torch.from_numpy(images))
        for name, rows in backbone.features(images).items():
            assert torch.equal(rows, there[name])

    def test_is_in_eval_mode(self, backbone: Backbone) -> None:
        part = getattr(backbone, "_normalised", None)
        assert part is None or not any(module.training for module in part.modules())

    def test_needs_no_gradient(self, backbone: Backbone) -> None:
        features = backbone.features(some_images(1, backbone.transform.image_size))
        assert not any(rows.requires_grad for rows in features.values())

    def test_a_row_does_not_depend_on_its_company(self, backbone: Backbone) -> None:
        images = some_images(8, backbone.transform.image_size)
        turned = backbone.features(np.ascontiguousarray(images[::-1]))
        for name, rows in backbone.features(images).items():
            assert np.array_equal(rows.numpy(), turned[name].numpy()[::-1])

    def test_resizes_any_image_to_its_own_size(self, backbone: Backbone) -> None:
        side = backbone.transform.image_size
        for shape in ((5, 9, 3), (side, side, 3), (301, 40, 3)):
            resized = backbone.resize(np.full(shape, 77, np.uint8))
            assert resized.shape == (side, side, 3)
            assert resized.dtype == np.uint8
            assert (resized == 77).all()
