"""Networks of open_clip as backbones: the backbone contract, and equality with open_clip itself, on random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from backbone_contract import BackboneContract, some_images
from open_clip import pretrained
from PIL import Image
from tiny_clip import CLIP, RESNET, SIGLIP, network_of, save

from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.backbones.weights import source_of
from featcache.backbones.zoos import TEXT_PREFIX, zoo_of
from featcache.errors import DownloadError, InvalidOption, MissingExtra, UnknownName


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_clip.register(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def loaded(registered: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Network]:
    folder = tmp_path_factory.mktemp("loaded")
    return {name: load_backbone(name, weights="random:1", image_size=64, data_dir=folder) for name in (CLIP, SIGLIP)}


class TestClipContract(BackboneContract):
    @pytest.fixture
    def network(self, loaded: dict[str, Network]) -> Network:
        return loaded[CLIP]


class TestSigLipContract(BackboneContract):
    @pytest.fixture
    def network(self, loaded: dict[str, Network]) -> Network:
        return loaded[SIGLIP]


def rows_of(network: Network, images: np.ndarray) -> torch.Tensor:
    return network.on("cpu", "fp32").features(images)["pre_logits"]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) <= 1e-4


@pytest.mark.parametrize(
    ("name", "file"),
    [(CLIP, "a.safetensors"), (f"{CLIP}-quickgelu", "b.pt"), (RESNET, "c.pt"), (SIGLIP, "d.safetensors")],
)
def test_features_are_the_image_embeddings_of_the_library(name: str, file: str, tmp_path: Path) -> None:
    own = network_of(name)
    network = load_backbone(name, weights=str(save(own, tmp_path / file)), data_dir=tmp_path)
    images = some_images(3, network.spec.transform.image_size)
    given = network.spec.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert_near(rows_of(network, images), own.encode_image(given))
    assert network.spec.feature_dims == {"pre_logits": own.encode_image(given).shape[1]}


@pytest.mark.parametrize("name", [CLIP, SIGLIP])
def test_images_of_another_size_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    path = save(network_of(name), tmp_path / "clip.safetensors")
    own = open_clip.create_model(name.removeprefix(TEXT_PREFIX), pretrained=str(path), force_image_size=48).eval()
    network = load_backbone(name, weights=str(path), image_size=48, data_dir=tmp_path)
    images = some_images(2, 48)
    given = network.spec.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        assert_near(rows_of(network, images), own.encode_image(given))


def test_tokens_are_those_before_the_projection(tmp_path: Path) -> None:
    own = network_of(CLIP)
    path = str(save(own, tmp_path / "clip.safetensors"))
    layers = ("pre_logits", "tokens")
    network = load_backbone(CLIP, weights=path, layers=layers, pool="none", data_dir=tmp_path)
    assert [layer.shape for layer in network.spec.layers] == [(24,), (17, 64)]
    found = network.on("cpu", "fp32").features(some_images(2, network.spec.transform.image_size))
    assert_near(found["tokens"].view(2, 17, 64)[:, 0] @ own.visual.proj, found["pre_logits"])
    averaged = load_backbone(CLIP, weights=path, pool="avg", data_dir=tmp_path).spec.layers[0]
    assert (averaged.name, averaged.shape, averaged.pooling.prefix) == ("tokens", (64,), 1)


def test_cropped_images_are_preprocessed_as_by_the_library(tmp_path: Path) -> None:
    path = save(network_of(CLIP), tmp_path / "clip.safetensors")
    own, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(path))
    network = load_backbone(CLIP, weights=str(path), resize="crop", data_dir=tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    with torch.inference_mode():
        expected = own.eval().encode_image(preprocess(Image.fromarray(image))[None])
    assert_near(rows_of(network, network.resize(image)[None].copy()), expected)


def test_the_digest_is_that_of_the_image_encoder_alone(tmp_path: Path) -> None:
    first = network_of(CLIP)
    spec = load_backbone(CLIP, weights=str(save(first, tmp_path / "a.pt")), data_dir=tmp_path).spec
    first.text_projection.data += 1
    same = load_backbone(CLIP, weights=str(save(first, tmp_path / "b.pt")), data_dir=tmp_path).spec
    assert same.layers == spec.layers
    first.visual.proj.data += 1
    other = load_backbone(CLIP, weights=str(save(first, tmp_path / "c.pt")), data_dir=tmp_path).spec
    assert other.layers[0].weights != spec.layers[0].weights


@pytest.fixture
def tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tags of weights for one network; downloads give a local file."""
    path = save(network_of(CLIP), tmp_path / "downloaded.safetensors")
    first = {"file": str(path), "mean": (0.1, 0.2, 0.3)}
    known = {"first": first, "second": {**first, "resize_mode": "squash", "quick_gelu": True}}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-clip", known)
    return path


def test_a_tag_of_the_library_names_weights_with_their_own_preprocessing(tags: Path, tmp_path: Path) -> None:
    assert source_of(CLIP, "first") == "open_clip:tiny-clip/first"
    spec = load_backbone(CLIP, weights="first", data_dir=tmp_path).spec
    assert spec.source == "open_clip:tiny-clip/first"
    assert spec.transform.mean == (0.1, 0.2, 0.3)
    assert spec.layers == load_backbone(CLIP, weights=str(tags), data_dir=tmp_path).spec.layers


def test_one_of_several_tags_has_to_be_chosen(tags: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="default") as raised:
        load_backbone(CLIP, data_dir=tmp_path)
    assert "first, second" in str(raised.value.hint)


def test_weights_of_another_activation_are_refused(tags: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="QuickGELU") as raised:
        load_backbone(CLIP, weights="second", data_dir=tmp_path)
    assert str(raised.value.hint) == f"--backbone {CLIP}-quickgelu"


def test_a_failed_download_offers_a_file(tags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(pretrained, "download_pretrained", fail)
    with pytest.raises(DownloadError, match="no route") as raised:
        load_backbone(CLIP, weights="first", data_dir=tmp_path)
    assert "--weights PATH" in str(raised.value.hint)


def test_weights_that_the_library_knows_give_the_preprocessing_of_a_file() -> None:
    zoo = zoo_of(CLIP)
    siglip = zoo.transform("open_clip:ViT-B-16-SigLIP")
    assert (siglip.mean, siglip.resize, siglip.image_size) == ((0.5, 0.5, 0.5), "squash", 224)
    clip = zoo.transform("open_clip:ViT-B-32")
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN and clip.resize == "crop" and clip.interpolation == "bicubic"


def test_models_whose_text_encoder_has_to_be_downloaded_are_not_listed() -> None:
    names = zoo_of(CLIP).names()
    assert {CLIP, SIGLIP, "open_clip:ViT-B-32"} <= set(names)
    assert not any("roberta" in name or "coca" in name for name in names)


def test_a_misspelt_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownName) as raised:
        zoo_of(CLIP).check("open_clip:ViT-B32")
    assert "open_clip:ViT-B-32" in str(raised.value.hint)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    zoo = zoo_of(CLIP)
    with pytest.raises(MissingExtra) as raised:
        zoo.names()
    assert str(raised.value.hint) == "pip install 'featcache[clip]'"
