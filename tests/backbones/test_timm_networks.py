"""timm's networks as backbones: the same promises as torchvision's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_contract import BackboneContract, some_images
from safetensors.torch import save_file

from featcache.backbones import backbone_layers, load_backbone, networks, timm_networks
from featcache.backbones.backbone import Backbone
from featcache.backbones.transforms import Transform
from featcache.backbones.weights import source_of
from featcache.errors import DownloadError, MissingExtra, UnknownName, WeightsError

# The default layer of each, and D.
NETWORKS = {
    "timm:resnet18": ("global_pool.flatten", 512),
    "timm:vit_tiny_patch16_224": ("getitem_1", 192),
    "timm:convnext_atto": ("head.flatten", 320),
    "timm:efficientnet_b0": ("global_pool.flatten", 1280),
}


def load(name: str, tmp_path: Path, **options: object) -> Backbone:
    return load_backbone(name, weights="random:1", weights_dir=tmp_path, **options)  # type: ignore[arg-type]


class TestTimmConvolutionsContract(BackboneContract):
    @pytest.fixture
    def backbone(self, tmp_path: Path) -> Backbone:
        return load("timm:resnet18", tmp_path, image_size=64)


class TestTimmTransformerContract(BackboneContract):
    @pytest.fixture(scope="class")
    def backbone(self, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load("timm:vit_tiny_patch16_224", tmp_path_factory.mktemp("timm"))


@pytest.mark.parametrize("name", NETWORKS)
def test_default_features_are_what_the_networks_own_classifier_is_given(name: str, tmp_path: Path) -> None:
    backbone = load(name, tmp_path)
    assert (backbone.layers[0].name, backbone.layers[0].feature_dim) == NETWORKS[name]
    network = networks.build_random(name, 1)
    seen: list[torch.Tensor] = []
    network.get_classifier().register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[operator]
    images = some_images(2, backbone.transform.image_size)
    with torch.inference_mode():
        network(backbone.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    (features,) = backbone.features(images).values()
    assert torch.allclose(features, seen[0], rtol=1e-3, atol=1e-4 * float(seen[0].abs().max()))


def test_the_transform_is_timms_own_in_numbers() -> None:
    from timm.data import create_transform, resolve_data_config

    found = networks.preset("timm:vit_tiny_patch16_224")
    assert found == Transform(
        image_size=224,
        resize="crop",
        resize_size=248,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    from PIL import Image

    config = resolve_data_config({}, model=networks.build_empty("timm:vit_tiny_patch16_224"))
    image = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    theirs = create_transform(**config)(Image.fromarray(image))
    ours = found.normalize(torch.from_numpy(found.resize_image(image).copy()).permute(2, 0, 1)[None])[0]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_layers_are_named_by_their_path_and_pooled_over_tokens(tmp_path: Path) -> None:
    layers = backbone_layers("timm:vit_tiny_patch16_224")
    assert layers.default == "getitem_1"
    assert "blocks.5" in layers.names
    backbone = load("timm:vit_tiny_patch16_224", tmp_path, layers=["blocks.5"], pool="avg")
    assert backbone.layers[0].shape == (192,)


def test_weights_are_known_by_their_bytes(tmp_path: Path) -> None:
    tensors = networks.build_random("timm:resnet18", 1).state_dict()
    save_file(tensors, tmp_path / "w.safetensors")
    options = {"weights_dir": tmp_path, "image_size": 64}
    drawn = load("timm:resnet18", tmp_path, image_size=64)
    read = load_backbone("timm:resnet18", weights=tmp_path / "w.safetensors", **options)  # type: ignore[arg-type]
    assert drawn.weights is not None
    assert read.weights is not None
    assert read.weights.digests == drawn.weights.digests
    assert (drawn.weights.source, drawn.name) == ("random:1", "timm:resnet18")
    del tensors["layer4.1.bn2.bias"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"layer4\.1\.bn2\.bias"):
        load_backbone("timm:resnet18", weights=tmp_path / "w.safetensors", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "nearest"), [("timm:resnt18", "timm:resnet18"), ("timm:resnet18.a1_in2k", "timm:resnet18.a1_in1k")]
)
def test_a_name_that_is_none_offers_the_nearest(said: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        networks.check_name(said)
    assert nearest in str(caught.value.hint)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_networks.timm_names.cache_clear()
    with pytest.raises(MissingExtra) as caught:
        networks.check_name("timm:resnet18")
    assert caught.value.hint == "pip install 'featcache[timm]'"


def test_default_weights_are_those_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of("timm:resnet18", "default") == "timm:timm/resnet18.a1_in1k"
    assert source_of("timm:resnet18.tv_in1k", "default") == "timm:timm/resnet18.tv_in1k"
    with pytest.raises(UnknownName, match="weights for timm:resnet18"):
        source_of("timm:resnet18", "IMAGENET1K_V1")

    def unreachable(name: str, **options: object) -> object:
        raise OSError("no route to the hub")

    import timm

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DownloadError, match=r"timm/resnet18\.a1_in1k could not be downloaded: no route") as caught:
        timm_networks.download("timm:resnet18")
    assert "--weights PATH" in str(caught.value.hint)
