"""The contract of every backbone, for all runners and zoos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.spec import BackboneSpec


def some_images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Random images: uint8 (count, side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def batch_of(program: Program, images: np.ndarray) -> dict[str, torch.Tensor]:
    """Features of a batch that is padded with black images, as in an extraction: {layer: (n, D)}."""
    padded = np.zeros((program.batch_size_for(len(images)), *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    return {name: rows[: len(images)] for name, rows in program.features(padded).items()}


class BackboneContract:
    """Subclass it and override the fixture `network`."""

    @pytest.fixture
    def network(self) -> Network:
        raise NotImplementedError

    @pytest.fixture
    def program(self, network: Network) -> Program:
        return network.on("cpu", "uint8" if network.spec.stores_bytes else "fp32")

    def test_gives_one_row_per_image_with_the_declared_length(self, network: Network, program: Program) -> None:
        features = program.features(some_images(2, network.spec.transform.image_size))
        assert {name: tuple(rows.shape) for name, rows in features.items()} == {
            layer.name: (2, layer.feature_dim) for layer in network.spec.layers
        }

    def test_is_deterministic_and_depends_on_the_image(self, network: Network, program: Program) -> None:
        images = some_images(2, network.spec.transform.image_size)
        first, again = program.features(images), program.features(images)
        for name, rows in first.items():
            assert np.array_equal(rows.numpy(), again[name].numpy())
            assert not np.array_equal(rows[0].numpy(), rows[1].numpy())

    def test_accepts_images_on_the_device(self, network: Network, program: Program) -> None:
        images = some_images(3, network.spec.transform.image_size)
        there = program.features(torch.from_numpy(images))
        for name, rows in program.features(images).items():
            assert torch.equal(rows, there[name])

    def test_is_in_eval_mode(self, network: Network) -> None:
        assert not any(module.training for module in network.module().eval().modules())

    def test_needs_no_gradient(self, network: Network, program: Program) -> None:
        features = program.features(some_images(1, network.spec.transform.image_size))
        assert not any(rows.requires_grad for rows in features.values())

    def test_a_row_does_not_depend_on_its_place_in_the_batch(self, network: Network, program: Program) -> None:
        images = some_images(8, network.spec.transform.image_size)
        turned = batch_of(program, np.ascontiguousarray(images[::-1]))
        for name, rows in batch_of(program, images).items():
            assert np.array_equal(rows.numpy(), turned[name].numpy()[::-1])

    def test_resizes_any_image_to_its_own_size(self, network: Network) -> None:
        side = network.spec.transform.image_size
        for shape in ((5, 9, 3), (side, side, 3), (301, 40, 3)):
            resized = network.resize(np.full(shape, 77, np.uint8))
            assert resized.shape == (side, side, 3)
            assert resized.dtype == np.uint8
            assert (resized == 77).all()

    def test_its_description_survives_json(self, network: Network) -> None:
        assert BackboneSpec.from_json(network.spec.to_json()).to_json() == network.spec.to_json()

    def test_a_further_program_does_not_change_existing_ones(self, network: Network, program: Program) -> None:
        images = some_images(2, network.spec.transform.image_size)
        before = program.features(images)
        if not network.spec.stores_bytes:
            network.on("cpu", "bf16").features(images)
        for name, rows in program.features(images).items():
            assert torch.equal(rows, before[name])
